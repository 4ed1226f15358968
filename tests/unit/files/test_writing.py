"""Writers that are stopped, or whose disk is full. Oracle: a real limit on the size of files, which the kernel answers with EFBIG."""

import errno
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.training.test_checkpoint import Trainer, same
from torchspec.cli import main as cli
from torchspec.errors import Stopped, UserError
from torchspec.export.hf import export_checkpoint
from torchspec.export.pt import export_tensors
from torchspec.files.writing import writing
from torchspec.training import checkpoints


@contextmanager
def small_files(most: int):
    """Python ignores the signal of this limit, so that a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def kept() -> str:
    return "line 7 is kept"


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "make it writable"), (errno.EACCES, "make it writable"), (errno.EIO, "look after")],
)
def test_a_disk_that_takes_no_more_is_one_sentence_with_the_file_the_fix_and_what_is_kept(tmp_path, number, fix):
    with pytest.raises(UserError, match=f"/full/a.bin cannot be written or read .*; {fix}.*; line 7 is kept$"):
        with writing(tmp_path / "out", "torchspec eval", kept):
            raise OSError(number, "words of the system", "/full/a.bin")


def test_safetensors_names_no_number_but_is_understood(tmp_path):
    with small_files(1000), pytest.raises(UserError, match="out cannot be written or read .File too large.; free some space"):
        with writing(tmp_path / "out", "torchspec export", kept):
            save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "out", "torchspec eval", kept):
        (tmp_path / "nowhere").read_text()


def test_who_is_stopped_says_what_is_kept_and_the_innermost_knows_best(tmp_path):
    with pytest.raises(Stopped) as stopped, writing(tmp_path / "all", "torchspec demo", lambda: "nothing"):
        with writing(tmp_path / "out", "torchspec eval", kept):
            raise Stopped(15)
    assert (stopped.value.number, str(stopped.value)) == (15, "torchspec eval was stopped: line 7 is kept")


def test_half_a_checkpoint_is_none_and_leaves_no_trace(tiny_method, tmp_path):
    first, second = Trainer(tiny_method, 1), Trainer(tiny_method, 2)
    first.save(tmp_path / "run", 1)
    with small_files(20_000), pytest.raises(UserError, match="partial_2 cannot be written or read .File too large.; free some space"):
        with writing(tmp_path / "run.json", "torchspec train", kept):
            second.save(tmp_path / "run", 2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["iter_0000001", checkpoints.LATEST]
    resumed = Trainer(tiny_method, 0, seed=9)
    assert resumed.load(checkpoints.latest(tmp_path / "run")).step == 1 and same(resumed.tensors(), first.tensors())


@pytest.mark.parametrize(("export", "name"), [(export_checkpoint, "draft"), (export_tensors, "draft.pt")])
def test_a_failed_export_leaves_the_earlier_one(tiny_method, tmp_path, export, name):
    made = Trainer(tiny_method, 1).save(tmp_path / "run", 1)
    out = export(made, tmp_path / name)
    file = out / "model.safetensors" if out.is_dir() else out
    before = file.read_bytes()
    with small_files(20_000), pytest.raises(UserError, match=f"{name} cannot be written.*; {out} is as it was before$"):
        export(made, out)
    assert file.read_bytes() == before
    assert export(made, out) == out and file.read_bytes() == before


def test_a_disk_that_takes_no_more_is_one_sentence_of_every_command(monkeypatch, tmp_path, capsys):
    """Also of one that holds no lock while it writes, as where a model is fetched or a comparison drawn."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "words of the system", str(tmp_path / "a.bin"))

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/a.bin cannot be written or read (No space left on device); free some space, or write elsewhere\n"
    )
