"""What long work shows: on a terminal of any width, in a log, and without colours."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from torchspec import progress
from torchspec.decode import stream_answer as streaming
from torchspec.progress import PlainLines, live_line, with_progress
from torchspec.training.log import RunLog

DESCRIPTION = "loss 2.345  123,456 tok/s  τ 1.98  held-out τ 2.01  train-bound (wait 3%, 1,234 MB/s), try 2 capture + 6 training"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_count_and_the_times_are_whole_on_any_terminal(width):
    """Oracle: the count itself, and that a line which fits is no two lines."""
    screen = io.StringIO()
    with live_line("train", Console(file=screen, force_terminal=True, width=width, color_system=None, legacy_windows=False)) as shown:
        task = shown.add_task("", total=200_000, completed=123_456)
        shown.update(task, description=DESCRIPTION)
    lines = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "train" in line]
    assert lines and all("123456/200000" in line and "0:00:0" in line for line in lines)
    assert (DESCRIPTION[:30] in lines[-1]) == (width > 60) and ("━" in lines[-1]) == (width == 200)


def test_a_log_holds_no_bar():
    log = io.StringIO()
    with live_line("train", Console(file=log)) as shown:
        shown.update(shown.add_task("", total=2), completed=1)
    assert log.getvalue() == ""


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A second passes whenever it is asked."""
    ticks = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: ticks.__setitem__(0, ticks[0] + 1) or ticks[0])
    return ticks


def test_a_line_a_minute_with_the_total_and_what_is_left(clock):
    log = io.StringIO()
    lines = PlainLines(Console(file=log, soft_wrap=True))
    for done in range(1, 151):
        lines.tell(f"regenerate: {done} conversations", done, 300)
    assert log.getvalue().splitlines() == [
        "regenerate: 60 conversations, 20%, eta 4:00",
        "regenerate: 120 conversations, 40%, eta 3:00",
    ]


def test_slow_work_has_a_rate_that_is_not_zero(clock, capsys):
    assert list(with_progress(iter(range(59)), "offline", 60, unit="conversations")) == list(range(59))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("offline: 30 conversations, 0.51 conversations/s, 50%, eta ")


def test_libraries_draw_no_bars_into_a_log(tmp_path):
    """A command that fails at once, then a bar of theirs."""
    code = "from torchspec.cli.main import main\ntry: main()\nexcept SystemExit: pass\nimport tqdm; list(tqdm.tqdm(range(3)))"
    said = subprocess.run([sys.executable, "-c", code, "train", "-c", "nowhere.yaml"], capture_output=True, text=True, cwd=tmp_path)
    assert said.stderr.startswith("error: ") and said.stderr.count("\n") == 1 and "it/s" not in said.stderr


@pytest.mark.parametrize(("variables", "word"), [({}, "green"), ({"NO_COLOR": "1"}, "underline")])
def test_drafted_words_are_told_apart_without_colours_too(variables, word, tiny_method, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system="standard", _environ={"TERM": "xterm", **variables})
    monkeypatch.setattr(streaming, "console", console)
    streaming.say("a drafted", True)
    escape = {"green": "\x1b[32m", "underline": "\x1b[4m"}[word]
    assert screen.getvalue() == f"{escape}a drafted\x1b[0m"
    assert streaming.legend() == f"; {word}: proposed by the draft and confirmed by the target"


def test_in_a_log_nothing_speaks_of_colours(monkeypatch):
    monkeypatch.setattr(streaming, "console", Console(file=io.StringIO()))
    assert streaming.legend() == ""


def test_only_the_main_rank_draws(tmp_path):
    """Ranks of torchrun share a terminal."""
    from torchspec.config import RunConfig

    config = RunConfig(output_dir=str(tmp_path), model={"target_model_path": "t"}, dataset={"train_data_path": "d"})
    assert RunLog(config, 0, 2, is_main=False).progress.disable
