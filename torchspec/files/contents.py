"""Keys of contents: what is kept for later stands under what it was made from, never under a name.

A model of 16 GB takes ten seconds to hash, so every file's hash is remembered in the user's cache, under all that changes when the file
does: path, inode, size, and the times of its contents and of its entry. A file that changed a moment ago may change again within one
tick of the clock, so it is hashed anew until it has rested.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

RESTED = 2_000_000_000  # ns; file systems tick at least once in two seconds
LEFT_OUT = {"README.md", ".gitattributes", ".gitignore", "LICENSE"}  # words about a model, which it does not read


def key(value: object) -> str:
    """16 hex digits of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_key(folder: Path) -> str:
    """16 hex digits of a model: names and contents of the files in its folder (weights, configs, tokenizer, templates and
    code). Folders below are not read."""
    return _files_key(file for file in folder.iterdir() if file.is_file() and file.name not in LEFT_OUT)


def model_key(folder: Path) -> str:
    """16 hex digits of what decides a model's states: its config and weights. Engines fetch other files beside them than we do."""
    return _files_key((folder / "config.json", *folder.glob("*.safetensors")))


def _files_key(files: Iterable[Path]) -> str:
    return key([[file.name, file_key(file)] for file in sorted(files)])


def file_key(file: Path) -> str:
    """16 hex digits of a file's contents."""
    stat, memory = file.stat(), _memory(file)
    state = [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    remembered = _remembered(memory)
    if remembered is not None and remembered["state"] == state:
        return remembered["key"]
    with file.open("rb") as source:
        found = hashlib.file_digest(source, "sha256").hexdigest()[:16]
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > RESTED:
        _remember(memory, {"state": state, "key": found})
    return found


def _memory(file: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "torchspec" / "contents" / key(str(file.resolve()))


def _remembered(memory: Path) -> dict | None:
    try:
        return json.loads(memory.read_text())
    except (OSError, ValueError):  # never written, or not by us: hashed again
        return None


def _remember(memory: Path, value: dict) -> None:
    partial = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value))
        partial.replace(memory)
    except OSError:  # a home that cannot be written: the next run hashes again
        pass
