"""Files and folders that are whole or not there. Oracle: the bytes before, and modes as the system gives them to any new file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torchspec.files.whole import whole
from torchspec.files.writing import writing


def write(path: Path, text: str) -> Path:
    """A file, or a folder that holds one."""
    if path.name.startswith("folder"):
        path.mkdir()
        (path / "part.txt").write_text(text)
    else:
        path.write_text(text)
    return path


def read(path: Path) -> str:
    return (path if path.is_file() else path / "part.txt").read_text()


def write_whole(path: Path, text: str) -> None:
    with whole(path) as partial:
        write(partial, text)


@pytest.mark.parametrize("name", ["file.txt", "folder"])
def test_what_fails_leaves_nothing_behind_and_the_old_as_it_was(tmp_path, name):
    write_whole(tmp_path / name, "old")
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / name) as partial:
        write(partial, "half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [name] and read(tmp_path / name) == "old"
    write_whole(tmp_path / name, "new")
    assert [path.name for path in tmp_path.iterdir()] == [name] and read(tmp_path / name) == "new"


@pytest.mark.parametrize("name", ["file.txt", "folder"])
def test_the_next_start_removes_what_a_kill_left(tmp_path, name):
    """Half of a new one; and a folder that was moved away for a new one that did not come."""
    path = write(tmp_path / name, "old")
    write(tmp_path / f"{name}.partial", "half")
    with writing(path, "torchspec test", lambda: ""):
        assert not (tmp_path / f"{name}.partial").exists() and read(path) == "old"
    if path.is_dir():
        path.rename(tmp_path / f".{name}.replaced")
        with writing(path, "torchspec test", lambda: ""):
            assert read(path) == "old"
    assert [left.name for left in tmp_path.iterdir()] == [name]


def test_files_have_the_mode_of_the_umask_whoever_made_them(tmp_path):
    """safetensors makes its files for their owner alone."""
    before = os.umask(0o027)
    try:
        with whole(tmp_path / "draft") as partial:
            partial.mkdir()
            save_file({"a": torch.zeros(1)}, partial / "model.safetensors")
        other = write(tmp_path / "other.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "draft" / "model.safetensors").stat().st_mode == other.stat().st_mode


def test_a_file_keeps_its_own_mode(tmp_path):
    private = write(tmp_path / "answers.txt", "old")
    private.chmod(0o600)
    write_whole(private, "new")
    assert private.stat().st_mode & 0o777 == 0o600
