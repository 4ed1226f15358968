"""One writer at a time. Oracle: the operating system, which takes a dead holder's lock back."""

import os
import subprocess
import sys

import pytest

from torchspec.errors import UserError
from torchspec.files.lock import locked

HOLD = "import sys; from pathlib import Path; from torchspec.files.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1]), 'torchspec train'): print('held', flush=True); sys.stdin.read()"


def test_a_second_writer_is_refused_with_folder_command_and_process_and_the_lock_goes_with_the_first(tmp_path):
    file = tmp_path / "run" / "metrics.jsonl"
    with locked(file, "torchspec train"):
        with pytest.raises(UserError) as refused, locked(file, "torchspec train"):
            pass
        with locked(file.with_name("results.json"), "torchspec eval"):  # another file of the folder has another writer
            pass
    holder = f"torchspec train, pid {os.getpid()} on {os.uname().nodename}"
    assert str(refused.value) == f"{file} is being written by {holder}; wait for it, or write elsewhere"
    assert list(file.parent.iterdir()) == []
    with locked(file, "torchspec train"):
        pass


def test_a_killed_writer_leaves_no_lock(tmp_path):
    file = tmp_path / "metrics.jsonl"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"torchspec train, pid {holder.pid} on "), locked(file, "torchspec train"):
        pass
    holder.kill()
    holder.communicate()
    with locked(file, "torchspec train"):
        assert f"pid {os.getpid()}" in (tmp_path / ".metrics.jsonl.lock").read_text()


def test_a_writer_that_fails_leaves_no_lock(tmp_path):
    with pytest.raises(ValueError, match="oops"), locked(tmp_path / "draft", "torchspec export"):
        raise ValueError("oops")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written .Not a directory.; mend it"), locked(tmp_path / "file/run/a", "x"):
        pass
