"""Inputs -> rows: JSONL files and hub datasets, in OpenAI or ShareGPT form. A broken row carries its problem and is no error."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets

from torchspec.errors import UserError

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


@dataclass(frozen=True)
class Row:
    where: str  # file:line (from 1) or dataset:index (from 0)
    messages: list[dict] | None = None
    prompt_ids: list[int] | None = None  # with response_ids: what the target really saw and wrote; wins over tokenizing again
    response_ids: list[int] | None = None
    problem: str | None = None  # "what: which"; the row is unusable


class _Problem(Exception):
    """Why a row is unusable; ends up in Row.problem."""


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
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix not in (".jsonl", ".json"):
        return name
    raise UserError(f"input {name!r}: no file at {path.resolve()}; give a .jsonl file or a hub dataset id like owner/name")


def _chain(inputs: list[Path | str]) -> Iterator[Row]:
    for item in inputs:
        yield from _read_file(item) if isinstance(item, Path) else _read_dataset(item)


def _read_file(path: Path) -> Iterator[Row]:
    empty = True
    with path.open("rb") as file:  # bytes, so that one line that is not UTF-8 costs one row and not the file
        for number, line in enumerate(file, start=1):
            if line.strip():
                empty = False
                yield _row(f"{path}:{number}", line)
    if empty:
        raise UserError(f"input {path} is empty; it must hold one JSON object per line")


def _read_dataset(name: str) -> Iterator[Row]:
    try:
        for index, row in enumerate(datasets.load_dataset(name, split="train", streaming=True)):
            yield _row(f"{name}:{index}", row)
    except (OSError, ValueError) as error:  # no network, no such dataset, no split "train"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"input {name!r}: no such file, and the hub dataset cannot be read ({reason}); check the name or give a .jsonl file"
        ) from error


def _row(where: str, raw: bytes | dict) -> Row:
    try:
        fields = _parse(raw) if isinstance(raw, bytes) else raw
        return _from_fields(where, {key: value for key, value in fields.items() if value is not None})
    except _Problem as problem:
        return Row(where, problem=str(problem))


def _parse(line: bytes) -> dict:
    try:
        value = json.loads(line.decode("utf-8-sig"))
        if b"\\ud" in line.lower():  # "\ud83d" alone is valid JSON and no text: half an emoji, which no tokenizer accepts
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _Problem(f"not UTF-8: byte 0x{error.object[error.start]:02x} at column {error.start + 1}") from error
    except UnicodeEncodeError as error:
        raise _Problem("text holds half of a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise _Problem(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        raise _Problem(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise _Problem(f"not a JSON object: {type(value).__name__}")
    return value


def _from_fields(where: str, fields: dict) -> Row:
    if "prompt_ids" in fields or "response_ids" in fields:
        return Row(where, prompt_ids=_int_list(fields, "prompt_ids"), response_ids=_int_list(fields, "response_ids"))
    if fields.get("tools"):
        raise _Problem("tools are not rendered: write the tool descriptions into the system message and remove the key")
    if "messages" in fields:
        return Row(where, messages=_messages(fields["messages"]))
    if "conversations" in fields:
        return Row(where, messages=_system(fields) + _messages(fields["conversations"]))
    raise _Problem(f"no key 'messages' or 'conversations': the row has {', '.join(map(repr, fields)) or 'no keys'}")


def _int_list(fields: dict, key: str) -> list[int]:
    ids = fields.get(key)
    if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
        raise _Problem(f"{key} is not a list of token ids: it must hold at least one integer and nothing else")
    return ids


def _system(fields: dict) -> list[dict]:
    """ShareGPT files keep the system prompt beside the conversation."""
    return _messages([{"from": "system", "value": fields["system"]}]) if fields.get("system") else []


def _messages(raw: object) -> list[dict]:
    if not isinstance(raw, list) or not raw:
        raise _Problem(f"messages are no list: {type(raw).__name__}" if raw else "no messages")
    return [_message(number, message) for number, message in enumerate(raw)]


def _message(number: int, raw: object) -> dict:
    """{"role", "content"} and whatever else the template may read; null stands for absent, as in tables made from JSON."""
    if not isinstance(raw, dict):
        raise _Problem(f"message is no object: message {number} is {type(raw).__name__}")
    role_key, text_key = ("role", "content") if "role" in raw else ("from", "value")
    name = raw.get(role_key)
    if not isinstance(name, str) or name not in ROLES:
        raise _Problem(f"unknown role: {name!r} in message {number}")
    rest = {key: value for key, value in raw.items() if key not in (role_key, text_key) and value is not None}
    return {"role": ROLES[name], "content": raw.get(text_key), **rest}
