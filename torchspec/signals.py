"""Asked to end: by Ctrl-C, by `kill` or by a cluster. The first time what is under way is finished, a second time nothing is.

Handlers are the process's own and run in its main thread; anywhere else nothing is heard.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torchspec.errors import Stopped

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last is what Slurm's --signal=USR1@SECONDS sends before the time is over
ECHO = 2.0  # seconds: under torchrun a rank hears what its whole group hears, and the same once more from torchrun
SAVE = 1  # no number of ENDING: to save, and go on

_acts: list[Callable[[int], object]] = []  # of the blocks that are open, the innermost last


@contextmanager
def hearing(act: Callable[[int], object]) -> Iterator[None]:
    """While it lasts, `act` gets the number of the first signal of ENDING; the next one ends the process, whatever it is doing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _hear) for number in ENDING}
    _acts.append(act)
    try:
        yield
    finally:
        _acts.pop()
        if not _acts:  # an outer block is on its way out as well, if something was heard
            for number, handler in before.items():
                signal.signal(number, handler)


def stop(number: int) -> None:
    """An `act` of `hearing` for work that keeps what is done in any case."""
    raise Stopped(number)


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """While it lasts, a signal interrupts nothing: its number can be asked for, 0 until then."""
    heard = [0]
    with hearing(heard.append):
        yield lambda: heard[-1]


def _hear(number: int, _frame: object) -> None:
    again = partial(_again, time.monotonic()) if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL
    for ending in ENDING:
        signal.signal(ending, again)
    _acts[-1](number)


def _again(first: float, number: int, _frame: object) -> None:
    if time.monotonic() - first > ECHO:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
