"""Inputs -> rows: files and data sets, of the hub or of a folder. A broken row carries its problem and is no error."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from torchspec.errors import UserError
from torchspec.files.contents import file_key, key
from torchspec.rows.files import READABLE, STDIN, is_array, records
from torchspec.rows.formats import Row, to_row
from torchspec.rows.keys import Problem
from torchspec.rows.sets import DataSet

NAMED = {"perfectblend": "mlabonne/open-perfectblend"}  # sets that a documented recipe starts from
FILES = (".jsonl", ".json", ".gz", ".csv", ".parquet")


def read_rows(inputs: list[str]) -> Iterator[Row]:
    """Rows of all inputs in order. A wrong name fails here, before the first row, not after hours at the second input."""
    return _chain([resolve(name) for name in inputs])


def resolve(name: str) -> Path | DataSet:
    """The file of that name, or else the data set; `-` is JSONL from stdin."""
    path = Path(name)
    if path == STDIN:
        return path
    if path.is_file():
        return _file(path)
    if (path / "manifest.json").is_file():
        raise UserError(f"input {name!r} is prepared already ({path.resolve()}); train on it as it is, or give what it was made from")
    found = DataSet.parse(NAMED.get(name, name))
    if found is None or (path.suffix in FILES and not Path(found.source).is_dir()):
        raise UserError(
            f"input {name!r}: no file at {path.resolve()}; give a {READABLE} file, or a data set as owner/name, owner/name:split or "
            "owner/name:subset:split"
        )
    return found


BESIDE = ("", ".rejected", ".dropped", ".header.json", ".partial")  # what a writer of `out` writes


def check_no_input(out: Path, inputs: list[str]) -> None:
    """What is written is not what is read, lies not inside of it, and does not hold it."""
    for source in (Path(name) for name in inputs if Path(name).exists()):
        for written in (out.with_name(out.name + end) for end in BESIDE):
            same = written.exists() and written.samefile(source)
            if same or source.resolve() in written.resolve().parents or written.resolve() in source.resolve().parents:
                raise UserError(f"--out {out} would overwrite what is read, {source}; name another place")


def _file(path: Path) -> Path | DataSet:
    if not os.access(path, os.R_OK):
        raise UserError(f"input {path} may not be read by this user; change its permissions")
    if path.suffix == ".gz" and path.with_suffix("").suffix not in (".jsonl", ".json"):
        raise UserError(f"input {path} is packed and no .jsonl.gz or .json.gz; unpack it, or name it after what it holds")
    if path.suffix in (".zst", ".bz2", ".xz", ".zip", ".tar", ".arrow", ".tsv", ".xlsx"):
        raise UserError(f"input {path} is of no form that is read here; unpack or write it as {READABLE}")
    return DataSet(str(path), str(path)) if path.suffix == ".parquet" else path


def state(source: Path | DataSet) -> list:
    """Changes with the contents of an input, and with the name under which its rows are listed."""
    if source == STDIN:
        raise UserError("input - is read from a pipe, which has no contents to keep what is made of it by; write it to a file first")
    return [str(source.resolve()), file_key(source)] if isinstance(source, Path) else source.state()


def contents_key(name: str) -> str:
    """Of an input, under whatever name; of a data set of the hub, with its name and revision."""
    source = resolve(name)
    return file_key(source) if isinstance(source, Path) else key(source.state())


def count_lines(inputs: list[str]) -> int | None:
    """Lines of all inputs, for the time left; None where anything but files of plain JSONL is among them."""
    paths = [resolve(name) for name in inputs]
    if any(isinstance(path, DataSet) or path == STDIN or path.suffix in (".gz", ".csv") or is_array(path) for path in paths):
        return None
    total = 0
    for path in paths:
        with path.open("rb") as file:
            total += sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))  # noqa: B023 - read at once
    return total


def _chain(inputs: list[Path | DataSet]) -> Iterator[Row]:
    for item in inputs:
        for where, raw in records(item) if isinstance(item, Path) else item.records():
            yield _row(where, raw)


def _row(where: str, raw: bytes | dict) -> Row:
    try:
        return to_row(where, _checked(_parse(raw) if isinstance(raw, bytes) else raw))
    except Problem as problem:
        return Row(where, problem=str(problem))


def _parse(line: bytes) -> object:
    try:
        value = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():  # "\ud83d" alone is valid JSON and no text: half an emoji, which no tokenizer accepts
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise Problem(f"not UTF-8: byte 0x{error.object[error.start]:02x} at column {error.start + 1}") from error
    except UnicodeEncodeError as error:
        raise Problem("text holds half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise Problem(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise Problem(f"not valid JSON: {error}") from error
    return value


def _checked(value: object) -> dict:
    if not isinstance(value, dict):
        raise Problem(f"not a JSON object: {type(value).__name__}")
    return value
