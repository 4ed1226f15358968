"""Oracle: sha256 of the bytes; and the same bytes written in place, which only contents tell apart."""

import hashlib
import os

import pytest

from torchspec.files import contents


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_file_key_is_of_the_contents(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"weights")
    assert contents.file_key(file) == hashlib.sha256(b"weights").hexdigest()[:16]


def test_a_file_rewritten_at_once_in_the_same_size_has_another_key(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before = contents.file_key(file)
    file.write_bytes(b"two")
    assert contents.file_key(file) != before


def test_a_rested_file_is_read_once_and_again_after_any_change(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "RESTED", -1)
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda source, name: read.append(source.name) or digest(source, name))
    file = tmp_path / "a"
    file.write_bytes(b"one")
    keys = [contents.file_key(file), contents.file_key(file)]
    assert keys[0] == keys[1] and len(read) == 1
    stat = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    assert contents.file_key(file) == hashlib.sha256(b"two").hexdigest()[:16]


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "RESTED", -1)
    (tmp_path / "cache").write_text("a file, where a folder should be")
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert contents.file_key(file) == contents.file_key(file) == hashlib.sha256(b"one").hexdigest()[:16]


def test_folder_key_is_of_names_and_contents_and_not_of_the_place(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"w")
    assert contents.folder_key(tmp_path / "x") == contents.folder_key(tmp_path / "y")
    (tmp_path / "y" / "README.md").write_text("words")
    assert contents.folder_key(tmp_path / "x") == contents.folder_key(tmp_path / "y")
    (tmp_path / "y" / "config.json").rename(tmp_path / "y" / "generation_config.json")
    assert contents.folder_key(tmp_path / "x") != contents.folder_key(tmp_path / "y")
