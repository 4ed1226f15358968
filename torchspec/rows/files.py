"""Records of one file, each with the line or number at which it stands: JSONL, a JSON array, either of them in gzip, and CSV."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from torchspec.errors import UserError

READABLE = ".jsonl, .json, .jsonl.gz, .json.gz, .csv or .parquet"
STDIN = Path("-")
Record = tuple[str, bytes | dict]  # where, JSON text or fields


def open_bytes(path: Path) -> AbstractContextManager[BinaryIO]:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def is_array(path: Path) -> bool:
    """ShareGPT is published as one JSON array in a .json file."""
    if path.name.removesuffix(".gz").rpartition(".")[2] != "json":
        return False
    try:
        with open_bytes(path) as file:
            return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error, str(path)) from error


def records(path: Path) -> Iterator[Record]:
    read = _rows_of_csv if path.suffix == ".csv" else _elements if is_array(path) else _lines
    where = None
    try:
        for where, record in read(path):
            yield where, record
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error, where or "its beginning") from error
    if where is None and read is not _elements:
        raise UserError(f"input {path} is empty; it must hold one JSON object per line, or be one of {READABLE}")


def _unreadable(path: Path, error: Exception, reached: str) -> UserError:
    return UserError(f"input {path} cannot be read ({error}; the last row read was {reached}); fetch or write the file again")


def _lines(path: Path) -> Iterator[Record]:
    with open_bytes(path) as file:  # bytes: a line that is not UTF-8 costs one row, and U+2028 ends none
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def _elements(path: Path) -> Iterator[Record]:
    """Decodes one element at a time: memory for the text, not for its objects. `where` names the line on which the element starts."""
    with open_bytes(path) as file:
        text = file.read().decode("utf-8-sig")
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position = gap.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        if text.startswith("]", position):
            return
        try:
            _, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"input {path} is a damaged JSON array ({error}); mend it, or write one JSON object per line") from error
        yield f"{path}:{line}", text[position:end].encode(errors="surrogatepass")
        position = end


def _rows_of_csv(path: Path) -> Iterator[Record]:
    """Every cell is text, lists of messages are JSON text; an empty cell is none."""
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise, which a long conversation exceeds
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        for row in rows:
            yield f"{path}:{rows.line_num}", {name: cell for name, cell in row.items() if name and cell}
