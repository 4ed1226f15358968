"""How far long work is: a live line on a terminal, elsewhere plain lines, one a minute."""

import time
from collections.abc import Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal
ROOM_FOR_A_BAR = 100  # columns of a terminal
T = TypeVar("T")


def live_line(what: str, console: Console, shown: bool = True, transient: bool = False) -> Progress:
    """Count and times are never cut: where a terminal is narrow there is no bar, and the description takes what is left.

    Nothing is drawn where there is no terminal: a log holds no bars.
    """
    fixed, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
    bar: list[ProgressColumn] = [BarColumn(bar_width=24)] if console.width >= ROOM_FOR_A_BAR else []
    columns = [
        TextColumn(what), MofNCompleteColumn(table_column=fixed), *bar, TextColumn("{task.description}", table_column=rest),
        TimeElapsedColumn(table_column=fixed), TextColumn("eta"), TimeRemainingColumn(table_column=fixed),
    ]  # fmt: skip
    return Progress(*columns, console=console, expand=True, transient=transient, disable=not (shown and console.is_terminal))


def with_progress(items: Iterator[T], what: str, total: int | None, visible: bool = True, unit: str = "rows") -> Iterator[T]:
    """total: None where it is not known beforehand."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    lines = PlainLines(console)
    with live_line(what, console, visible, transient=True) as progress:
        task = progress.add_task("", total=total)
        for done, item in enumerate(items, start=1):
            yield item
            rate = done / (time.perf_counter() - lines.started)
            speed = f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"
            progress.update(task, completed=done, description=speed)
            if visible:
                lines.tell(f"{what}: {done:,} {unit}, {speed}", done, total)


class PlainLines:
    """Now and then a line with the time that is left, where there is no terminal for a bar."""

    def __init__(self, console: Console):
        self.console, self.started = console, time.perf_counter()
        self.told = self.started

    def tell(self, what: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if not self.console.is_terminal and now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            self.console.print(with_time_left(what, done, total, now - self.started), markup=False)


def with_time_left(what: str, done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return what
    left = max(0, round((total - done) * seconds / done))
    return f"{what}, {done / total:.0%}, eta {left // 60}:{left % 60:02d}"
