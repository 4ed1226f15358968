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
    live = visible and console.is_terminal
    started = told = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not live) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        for done, item in enumerate(items, start=1):
            yield item
            now = time.perf_counter()
            if live:
                progress.update(task, completed=done, rate=done / (now - started))
            elif visible and now - told > SECONDS_BETWEEN_LINES:
                told = now
                console.print(_line(what, done, total, now - started))


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds
    line = f"{what}: {done:,} rows, {rate:,.0f} rows/s"
    if total is None:
        return line
    left = max(0, round((total - done) / rate))
    return f"{line}, {done / total:.0%}, eta {left // 60}:{left % 60:02d}"
