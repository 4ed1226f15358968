"""Rows, rate and time left of long work on data: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0  # where there is no terminal
T = TypeVar("T")


def with_progress(items: Iterator[T], what: str, total: int | None, visible: bool) -> Iterator[T]:
    """total: None where it is not known beforehand."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (
        SpinnerColumn(), TextColumn(what + ": {task.fields[rate]:,.0f} rows/s"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    live, lines = visible and console.is_terminal, PlainLines(console)
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        for done, item in enumerate(items, start=1):
            yield item
            rate = done / (time.perf_counter() - lines.started)
            if live:
                progress.update(task, completed=done, rate=rate)
            elif visible:
                lines.tell(f"{what}: {done:,} rows, {rate:,.0f} rows/s", done, total)


class PlainLines:
    """Now and then a line with the time that is left, where there is no terminal for a bar."""

    def __init__(self, console: Console):
        self.console, self.started = console, time.perf_counter()
        self.told = self.started

    def tell(self, what: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if not self.console.is_terminal and now - self.told > SECONDS_BETWEEN_LINES:
            self.told = now
            self.console.print(with_time_left(what, done, total, now - self.started), markup=False)


def with_time_left(what: str, done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return what
    left = max(0, round((total - done) * seconds / done))
    return f"{what}, {done / total:.0%}, eta {left // 60}:{left % 60:02d}"
