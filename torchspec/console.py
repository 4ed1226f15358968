"""Where everything that is said to a user goes."""

import codecs
import io
import shlex
import sys

from rich.console import Console

LEAST_WIDTH = 8  # of the names: those of one command stand below one another, whoever prints them
console = Console(highlight=False, soft_wrap=True)
PLAIN = {"τ": "tau", "→": "->", "×": "x", "–": "-", "…": "...", "█": "#", "•": "*", "│": "|", "─": "-", "━": "-", "“": '"', "”": '"'}


def print_rows(rows: dict[str, str]) -> None:
    """A name and its text in each line, the texts below one another. A command ends with them: `result`, the number, `next`."""
    width = max(LEAST_WIDTH, *map(len, rows))
    for name, text in rows.items():
        console.print(f"{name:>{width}}  {text}", markup=False)


def command(*words: object) -> str:
    """As it is typed into a shell."""
    return shlex.join(map(str, words))


def speak_anywhere() -> None:
    """A stdout or stderr that is not UTF-8 gets other signs for those that it does not know, where Python would end the run."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeEncodeError) -> tuple[str, int]:
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
