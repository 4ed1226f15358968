"""Who is asked to end: once politely, then at once. Oracle: the system's own signals, sent to this process and to one that may die."""

import multiprocessing
import multiprocessing.pool
import os
import signal

import pytest

from torchspec import signals
from torchspec.cli import main as cli
from torchspec.signals import ENDING, hearing, noted, stop


@pytest.mark.parametrize("number", ENDING)
def test_what_is_noted_interrupts_nothing_and_handlers_come_back(number):
    before = [signal.getsignal(n) for n in ENDING]
    with hearing(stop), noted() as asked:
        assert asked() == 0
        signal.raise_signal(number)
        assert asked() == number
        assert [signal.getsignal(n) for n in ENDING] == [signal.SIG_DFL] * 3  # the next one ends the process, also inside of a library
    assert [signal.getsignal(n) for n in ENDING] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_says_which_signal_it_was(number, code, monkeypatch, capsys):
    """Of a command that keeps nothing of its own."""
    monkeypatch.setattr(cli, "app", lambda: signal.raise_signal(number))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code and capsys.readouterr().err == "stopped; what was complete before is as it was\n"


def asked_again(pause: float, torchrun: bool) -> int:
    """Exit code of a process that is asked twice and would go on."""
    process = multiprocessing.get_context("fork").Process(target=_asked_again, args=(pause, torchrun))
    process.start()
    process.join(60)
    return process.exitcode


def _asked_again(echo: float, torchrun: bool) -> None:
    os.environ |= {"TORCHELASTIC_RUN_ID": "7"} if torchrun else {}
    signals.ECHO = echo
    with noted():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    os._exit(0)


def test_a_second_signal_ends_at_once_but_torchrun_repeats_what_its_group_heard():
    assert asked_again(60, torchrun=False) == -signal.SIGINT
    assert asked_again(60, torchrun=True) == 0
    assert asked_again(0, torchrun=True) == -signal.SIGINT


def test_where_no_signal_comes_none_is_heard():
    """A thread, as under Ray."""
    with multiprocessing.pool.ThreadPool(1) as pool, noted():
        assert pool.apply(_in_a_thread) == 0


def _in_a_thread() -> int:
    with noted() as asked:
        return asked()
