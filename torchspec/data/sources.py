"""Inputs -> rows: JSONL files, JSON arrays and hub datasets. A broken row carries its problem and is no error."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import datasets

from torchspec.data.formats import Problem, Row, to_row
from torchspec.errors import UserError

NAMED = {"perfectblend": "mlabonne/open-perfectblend"}  # sets that a documented recipe starts from
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")  # owner/name or owner/name:split


def read_rows(inputs: list[str]) -> Iterator[Row]:
    """Rows of all inputs in order. A wrong name fails here, before the first row, not after hours at the second input."""
    return _chain([resolve(name) for name in inputs])


def resolve(name: str) -> Path | str:
    """The file of that name, or else the hub dataset id."""
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"input {name!r} is a folder ({path.resolve()}); give the .jsonl files in it")
    if name in NAMED:
        return NAMED[name]
    if HUB_ID.fullmatch(name) and path.suffix not in (".jsonl", ".json"):
        return name
    raise UserError(f"input {name!r}: no file at {path.resolve()}; give a .jsonl file or a hub dataset id like owner/name")


def count_lines(inputs: list[str]) -> int | None:
    """Lines of all inputs, for the time left; None where a hub dataset or a JSON array is among them."""
    paths = [resolve(name) for name in inputs]
    if any(isinstance(path, str) or _is_array(path) for path in paths):
        return None
    total = 0
    for path in paths:
        with path.open("rb") as file:
            total += sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))  # noqa: B023 - read at once
    return total


def _chain(inputs: list[Path | str]) -> Iterator[Row]:
    for item in inputs:
        if isinstance(item, str):
            yield from _read_dataset(item)
        else:
            yield from _read_array(item) if _is_array(item) else _read_lines(item)


def _is_array(path: Path) -> bool:
    """ShareGPT is published as one JSON array in a .json file."""
    with path.open("rb") as file:
        return path.suffix == ".json" and file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _read_lines(path: Path) -> Iterator[Row]:
    empty = True
    with path.open("rb") as file:  # bytes, so that one line that is not UTF-8 costs one row and not the file
        for number, line in enumerate(file, start=1):
            if line.strip():
                empty = False
                yield _row(f"{path}:{number}", line)
    if empty:
        raise UserError(f"input {path} is empty; it must hold one JSON object per line")


def _read_array(path: Path) -> Iterator[Row]:
    """Decodes one element at a time: memory for the text, not for its objects. `where` names the line on which the element starts."""
    text, decoder, gap = path.read_text("utf-8-sig"), json.JSONDecoder(), re.compile(r"[\s,]*")
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
        yield _row(f"{path}:{line}", text[position:end].encode(errors="surrogatepass"))
        position = end


def _read_dataset(name: str) -> Iterator[Row]:
    repository, _, split = name.partition(":")
    try:
        for index, row in enumerate(datasets.load_dataset(repository, split=split or "train", streaming=True)):
            yield _row(f"{name}:{index}", row)
    except (OSError, ValueError) as error:  # no network, no such dataset, no such split
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"input {name!r}: no such file, and the hub dataset cannot be read ({reason}); check the name, add a split as "
            "owner/name:split, or give a .jsonl file"
        ) from error


def _row(where: str, raw: object) -> Row:
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
