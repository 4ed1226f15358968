"""Prints the unit tests of what has changed since a commit (default: the last one): those of the same room, and changed tests."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[1]
ALWAYS = "tests/unit/test_rooms.py"


def changed(since: str) -> list[str]:
    """Files of the checkout that differ from the commit, untracked ones included."""
    commands = (["git", "diff", "--name-only", since], ["git", "ls-files", "--others", "--exclude-standard"])
    return [line for command in commands for line in subprocess.check_output(command, cwd=ROOT, text=True).splitlines()]


def belonging(files: Iterable[str]) -> list[str]:
    """torchspec/ROOM/file.py -> tests/unit/ROOM; torchspec/file.py -> tests/unit/test_file.py; a test -> itself."""
    chosen = {ALWAYS}
    for file in map(PurePath, files):
        match file.parts:
            case ("torchspec", name):
                chosen.add(f"tests/unit/test_{name}")
            case ("torchspec", room, *_):
                chosen.add(f"tests/unit/{room}")
            case ("tests", "unit", *_) if file.name.startswith("test_"):
                chosen.add(str(file))
            case ("tests", "unit", room, _):  # what several of its tests share
                chosen.add(f"tests/unit/{room}")
            case ("docs", *_) | ("README.md",) | ("configs", *_):
                chosen.add("tests/unit/test_documentation.py")
            case ("deploy", *_):
                chosen.add("tests/unit/test_deploy.py")
    there = {path for path in chosen if (ROOT / path).exists()}
    return sorted(path for path in there if not any(str(parent) in there for parent in PurePath(path).parents))


if __name__ == "__main__":
    print(" ".join(belonging(changed(sys.argv[1] if len(sys.argv) > 1 else "HEAD"))))
