"""The JSONL that `torchspec regenerate` writes: added to by any number of runs, all with one target, template and sampling.

    OUT               {"id": "prompts.jsonl:7#1", "messages", "prompt_ids", "response_ids", "finish", "last", "ended", "key",
                       "tokenizer", "header"}     one row per answer; the rows of a conversation follow one another
    OUT.header.json   target, template, stop ids and sampling in words, of which every row's `header` is the key: where this file is
                      lost, rows of another target or sampling are still found, and nothing reads it but the sentence that says so

`key` is the key of the conversation's questions: what is answered already is found by it, wherever the input holds it now.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchspec.data.manifest import tokenizer_hash
from torchspec.errors import UserError
from torchspec.files import contents
from torchspec.files.whole import whole


class AnswersFile:
    """Open for adding. Whoever opens one holds the lock of its path."""

    def __init__(self, path: Path, header: dict, target: Path):
        """header: all that the answers are made with. A file of anything else, or of anybody else, is refused and left as it is."""
        self.path, self.header, self.target = path, header, str(target.resolve())
        self.key, self.tokenizer = contents.key(header), tokenizer_hash(target)
        self.done: set[str] = set()  # keys of the conversations that the file holds whole
        self._mend()
        with whole(self._header_file) as partial:
            partial.write_text(json.dumps({"path": self.target, **header}, indent=2) + "\n")

    @property
    def _header_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.header.json")

    def add(self, conversations: list[tuple[str, list[dict]]]) -> None:
        """(key, rows) of whole conversations. Where a kill cuts the write, the next run removes the part of a conversation."""
        rows = [{**row, "key": key, "tokenizer": self.tokenizer, "header": self.key} for key, rows in conversations for row in rows]
        with self.path.open("ab") as sink:
            sink.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self.done.update(key for key, rows in conversations if rows)

    def _mend(self) -> None:
        """Keeps whole conversations. A cut end is cut off; anything else is copied aside first, so that a kill loses nothing."""
        if not self.path.exists() or not self.path.stat().st_size:
            return
        complete = list(_joined(self._conversations()))
        if complete == [(0, self.path.stat().st_size)]:
            return
        if not complete or (len(complete) == 1 and complete[0][0] == 0):
            os.truncate(self.path, complete[0][1] if complete else 0)
            return
        file = self.path.resolve()  # a link stays one
        with whole(file) as partial, file.open("rb") as source, partial.open("wb") as sink:
            for start, end in complete:
                source.seek(start)
                for block in _blocks(source, end - start):
                    sink.write(block)

    def _conversations(self) -> Iterator[tuple[int, int]]:
        """Byte ranges of whole conversations; their keys go into `done`."""
        begin, key, turns = 0, None, 0
        for row in self._rows():
            if row.turn == 1:
                begin, key, turns = row.start, row.key, 0
            turns = turns + 1 if row.key == key and row.turn == turns + 1 else -1  # a turn is missing before this one
            if row.last and turns > 0:
                self.done.add(row.key)
                yield begin, row.end

    def _rows(self) -> Iterator["_Place"]:
        end, ours = 0, False
        with self.path.open("rb") as source:
            for number, line in enumerate(source, start=1):
                start, end = end, end + len(line)
                cut = not line.endswith(b"\n")
                if not line.strip() or (cut and (ours or self._is_ours())):
                    continue
                row = _parsed(line)
                if row is None:
                    place = f"{self.path.resolve()}:{number}"
                    raise UserError(f"{place} is no row of `torchspec regenerate`; name another file with -o, or take that line out")
                self._check_header(row["header"])
                ours = True
                yield _Place(start, end, row["key"], int(row["id"].rpartition("#")[2]), row["last"])

    def _is_ours(self) -> bool:
        """Where no whole row can tell."""
        return self._written() == {"path": self.target, **self.header}

    def _written(self) -> dict:
        """The header file; empty where it is lost, or no longer ours."""
        try:
            written = json.loads(self._header_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return written if isinstance(written, dict) else {}

    def _check_header(self, key: str) -> None:
        if key == self.key:
            return
        written, now = self._written(), {"path": self.target, **self.header}
        if contents.key({name: value for name, value in written.items() if name != "path"}) == key:
            changed = [f"{name} {written.get(name)} instead of {value}" for name, value in now.items() if written.get(name) != value]
            made_with = ", ".join(changed)
        else:
            made_with = f"another target, template or sampling ({self._header_file.name} is not there to say which)"
        raise UserError(f"{self.path.resolve()} holds answers made with {made_with}; name another file with -o")


@dataclass(frozen=True)
class _Place:
    """A row in the file."""

    start: int
    end: int
    key: str
    turn: int  # from 1
    last: bool


def _parsed(line: bytes) -> dict | None:
    """None: not a row of ours."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    known = isinstance(row, dict) and {"id", "key", "header", "last", "response_ids"} <= row.keys()
    return row if known and str(row["id"]).rpartition("#")[2].isdecimal() else None


def _joined(ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges that touch become one."""
    open_range = None
    for start, end in ranges:
        if open_range and open_range[1] == start:
            open_range = (open_range[0], end)
        else:
            if open_range:
                yield open_range
            open_range = (start, end)
    if open_range:
        yield open_range


def _blocks(source, size: int) -> Iterator[bytes]:
    while size and (block := source.read(min(size, 2**20))):
        size -= len(block)
        yield block
