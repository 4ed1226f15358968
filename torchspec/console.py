"""Where everything that is said to a user goes."""

import shlex

from rich.console import Console

LEAST_WIDTH = 8  # of the names: those of one command stand below one another, whoever prints them
console = Console(highlight=False, soft_wrap=True)


def print_rows(rows: dict[str, str]) -> None:
    """A name and its text in each line, the texts below one another. A command ends with them: `result`, the number, `next`."""
    width = max(LEAST_WIDTH, *map(len, rows))
    for name, text in rows.items():
        console.print(f"{name:>{width}}  {text}", markup=False)


def command(*words: object) -> str:
    """As it is typed into a shell."""
    return shlex.join(map(str, words))
