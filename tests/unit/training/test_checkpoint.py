"""Checkpoints: bitwise what was saved, complete or absent whenever the process dies, rotated, and refused to another run."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

from tests.unit.tiny import random_features
from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.training import checkpoint, checkpoints
from torchspec.training.checkpoint import TrainState
from torchspec.training.distributed import World
from torchspec.training.optim import build_optimizers
from torchspec.training.same_run import check_same_run
from torchspec.training.stream import pack
from torchspec.training.tensors import read_weights

ALONE = World(0, 1, torch.device("cpu"))


class Trainer:
    """A small draft in the middle of its training."""

    def __init__(self, method, steps: int, seed: int = 0, **training):
        values = {"output_dir": "o", "model": {"target_model_path": "t", "dtype": "float32"}, "dataset": {"train_data_path": "d"}}
        self.config = RunConfig(**values, training={"weight_decay": 0.1, **training})
        self.facts = {"fingerprint": "ids", "held_out": None, "target_contents": "weights", "thinking": None, "samples": 1}
        self.method, self.model = method, method.build(torch.Generator().manual_seed(seed))
        self.optimizers = build_optimizers(self.model, self.config.training)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        batch = pack([random_features("000011111111110", 0)], epoch=0)
        loss_sum, weight_sum, _ = self.method.loss(self.model, batch, 0)
        (loss_sum / weight_sum).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def save(self, root: Path, step: int, **state) -> Path:
        saver = checkpoint.Saver(root, self.config, ALONE, self.method.config, self.facts)
        saver.save(TrainState(step=step, **state), self.model, self.optimizers)
        saver.finish()
        return checkpoints.folder(root, step)

    def load(self, folder: Path) -> TrainState:
        check_same_run(folder, self.config, ALONE, self.facts, self.method.config)
        return checkpoint.load(folder, self.model, self.optimizers, ALONE)

    def tensors(self) -> dict[str, torch.Tensor]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {
            f"{names[p]}/{key}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for p, state in optimizer.state.items()
            for key, value in state.items()
        }
        return {**{name: p.detach().clone() for p, name in names.items()}, **{key: value.clone() for key, value in moments.items()}}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_moments_and_state_come_back_bitwise_and_training_goes_on_bitwise(tiny_method, tmp_path, optimizer):
    kept = Trainer(tiny_method, 3, optimizer=optimizer)
    state = TrainState(step=3, tokens=1234, seconds=5.25, best_tau=1.75, best_step=2)
    kept.save(tmp_path, **vars(state))
    resumed = Trainer(tiny_method, 0, seed=9, optimizer=optimizer)
    assert not same(kept.tensors(), resumed.tensors())
    assert resumed.load(checkpoints.latest(tmp_path)) == state
    assert same(kept.tensors(), resumed.tensors())
    assert len(kept.tensors()) >= 2 * len(list(kept.model.parameters()))  # the moments are among them
    for _ in range(3):
        kept.step()
        resumed.step()
    assert same(kept.tensors(), resumed.tensors())


def test_masters_are_stored_in_float32_under_the_serving_names(tiny_method, tmp_path):
    trainer = Trainer(tiny_method, 1)
    written = read_weights(trainer.save(tmp_path, 1))
    assert written.keys() == dict(trainer.model.named_parameters()).keys()
    assert all(value.dtype == torch.float32 for value in written.values())


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def die_at(monkeypatch, number: int) -> list[str]:
    """The process dies before the number-th change of the disk; the list grows by what was done before."""
    done: list[str] = []

    def counted(name, function):
        def run(*args, **kwargs):
            if len(done) == number:
                raise Killed(name)
            done.append(name)
            return function(*args, **kwargs)

        return run

    for owner, name in ((dcp, "async_save"), (Path, "write_text"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    return done


def test_killed_at_any_moment_the_latest_checkpoint_is_whole_and_the_next_save_succeeds(tiny_method, tmp_path, monkeypatch):
    first, second = Trainer(tiny_method, 1), Trainer(tiny_method, 2)
    for number in range(100):
        root = tmp_path / str(number)
        first.save(root, 1)
        with monkeypatch.context() as patch:
            done = die_at(patch, number)
            try:
                second.save(root, 2)
                survived = True
            except (Killed, CheckpointException) as error:  # DCP wraps what happens on a rank
                assert "Killed" in repr(error) + str(error)
                survived = False
        resumed = Trainer(tiny_method, 0, seed=9)
        state = resumed.load(checkpoints.latest(root))
        assert same(resumed.tensors(), (first if state.step == 1 else second).tensors())
        assert state.step == 2 or not survived
        second.save(root, 2)  # the resumed run arrives at the step again
        assert checkpoints.latest(root) == root / "iter_0000002", f"killed after {done}"
        assert not list(root.glob(".partial*"))
        if survived:
            break
    assert survived and number > 8  # every operation of a save was the last one once


def test_an_earlier_half_written_checkpoint_is_no_checkpoint(tiny_method, tmp_path):
    (tmp_path / ".partial_5").mkdir()
    (tmp_path / ".partial_5" / "model.safetensors").write_bytes(b"half")
    assert checkpoints.latest(tmp_path) is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoints.best(tmp_path)


@pytest.mark.parametrize("keep", [1, 2, 3, 10])
@pytest.mark.parametrize("best", [0, 100, 300, 600])
def test_rotation_keeps_the_newest_and_the_best(tmp_path, keep, best):
    steps = (100, 200, 300, 400, 500, 600)
    for step in steps:
        (checkpoints.folder(tmp_path, step) / "deep").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    checkpoints.rotate(tmp_path, keep, best, 600)
    left = {int(path.name.removeprefix("iter_")) for path in tmp_path.glob("iter_*")}
    assert left == set(steps[-keep:]) | ({best} & set(steps)) and (tmp_path / "notes").is_dir()


def test_steps_beyond_the_zero_padding_still_rotate_by_age(tmp_path):
    for step in (9_999_998, 9_999_999, 10_000_000):
        checkpoints.folder(tmp_path, step).mkdir(parents=True)
    checkpoints.rotate(tmp_path, 1, 0, 10_000_000)
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_10000000"]


def test_a_failed_delete_warns_with_the_folder_and_the_others_still_go(tmp_path, monkeypatch):
    for step in (1, 2, 3, 4):
        checkpoints.folder(tmp_path, step).mkdir(parents=True)
    real = shutil.rmtree

    def stuck(path, *args, **kwargs):
        if path.name == "iter_0000001":
            raise OSError("device busy")
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", stuck)
    with pytest.warns(UserWarning, match="iter_0000001 could not be deleted .device busy.; delete it by hand") as warned:
        checkpoints.rotate(tmp_path, 2, 0, 4)
    assert len(warned) == 1 and sorted(p.name for p in tmp_path.iterdir()) == ["iter_0000001", "iter_0000003", "iter_0000004"]


def test_a_successful_rotation_warns_of_nothing(tmp_path):
    for step in (1, 2):
        checkpoints.folder(tmp_path, step).mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoints.rotate(tmp_path, 1, 0, 2)


def test_the_best_is_the_one_recorded_and_else_the_latest(tiny_method, tmp_path):
    trainer = Trainer(tiny_method, 1)
    trainer.save(tmp_path, 1)
    assert checkpoints.best(tmp_path) == tmp_path / "iter_0000001"
    trainer.save(tmp_path, 2, best_tau=2.5, best_step=2)
    trainer.save(tmp_path, 3, best_tau=2.5, best_step=2)
    assert checkpoints.best(tmp_path) == tmp_path / "iter_0000002" and checkpoints.latest(tmp_path) == tmp_path / "iter_0000003"
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "tau": 2.5}


def test_another_length_is_refused_with_the_way_to_go_on(tiny_method, tmp_path):
    folder = Trainer(tiny_method, 1).save(tmp_path, 1)
    other = Trainer(tiny_method, 0)
    other.config = other.config.model_copy(update={"training": other.config.training.model_copy(update={"max_steps": 99})})
    way = f"set another output_dir with training.load_path={folder} training.continual_training=true to go on with its weights, or restore"
    with pytest.raises(UserError, match=re.escape(way)):
        other.load(folder)


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("training", {"learning_rate": 0.001}, "training.learning_rate: 0.0006 -> 0.001"),
        ("training", {"seed": 3}, "training.seed: 0 -> 3"),
        ("training", {"optimizer": "muon"}, "training.optimizer: 'adamw' -> 'muon'"),
        ("draft", {"block_size": 8}, "draft.block_size: 16 -> 8"),
        ("draft", {"target_layer_ids": (1, 3)}, r"draft.target_layer_ids: None -> \[1, 3\]"),
        ("dataset", {"max_length": 100}, "dataset.max_length: 4096 -> 100"),
        ("model", {"dtype": "bfloat16"}, "model.dtype: 'float32' -> 'bfloat16'"),
    ],
)
def test_another_run_is_refused_with_the_field_and_both_values_and_nothing_is_loaded(tiny_method, tmp_path, section, change, words):
    folder = Trainer(tiny_method, 1).save(tmp_path, 1)
    other = Trainer(tiny_method, 0, seed=9)
    changed = getattr(other.config, section).model_copy(update=change)
    other.config = other.config.model_copy(update={section: changed})
    before = other.tensors()
    with pytest.raises(UserError, match=f"was made by a different run .*{words}.*set another output_dir or restore these values"):
        other.load(folder)
    assert same(before, other.tensors())


@pytest.mark.parametrize(
    ("fact", "name"),
    [
        ("fingerprint", "tokens and loss masks of the training data: 'ids' -> 'other'"),
        ("held_out", "tokens and loss masks of the held-out data: None -> 'other'"),
        ("target_contents", "files of the target: 'weights' -> 'other'"),
    ],
)
def test_other_contents_under_the_same_paths_are_refused_by_name(tiny_method, tmp_path, fact, name):
    folder = Trainer(tiny_method, 1).save(tmp_path, 1)
    other = Trainer(tiny_method, 0)
    other.facts[fact] = "other"
    with pytest.raises(UserError, match=f"was made from other contents .{name}.; restore them, or set another output_dir"):
        other.load(folder)


def test_another_draft_under_the_same_config_is_refused(tiny_method, tmp_path):
    """The mask token follows from tokenizer and template, not from the recipe."""
    folder = Trainer(tiny_method, 1).save(tmp_path, 1)
    values = json.loads((folder / "config.json").read_text())
    values["dflash_config"]["mask_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="holds another draft .dflash_config.mask_token_id: 5 there, 63 in this run"):
        Trainer(tiny_method, 0).load(folder)


def test_a_config_of_another_version_is_refused_with_the_field(tiny_method, tmp_path):
    folder = Trainer(tiny_method, 1).save(tmp_path, 1)
    values = json.loads((folder / "run.json").read_text())
    values["training"]["forgotten"] = 1
    (folder / "run.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="made by another version of torchspec, whose training.forgotten this one does not read"):
        Trainer(tiny_method, 0).load(folder)


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
def test_a_draft_of_no_numbers_is_neither_saved_nor_read(tiny_method, tmp_path, planted):
    trainer = Trainer(tiny_method, 1)
    folder = trainer.save(tmp_path, 1)
    with torch.no_grad():
        trainer.model.norm.weight[0] = planted
    with pytest.raises(UserError, match="after step 2 the draft holds NaN or infinity in model/norm.weight"):
        trainer.save(tmp_path, 2)
    assert checkpoints.latest(tmp_path) == folder
    (shard,) = folder.glob("shard-*.safetensors")
    with safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
    values = load_file(shard)
    values["model/norm.weight"][0] = planted
    save_file(values, shard, metadata)
    for read in (trainer.load, read_weights):
        with pytest.raises(UserError, match="iter_0000001: NaN or infinity in (model/)?norm.weight;.*older checkpoint"):
            read(folder)


def test_a_run_sent_back_to_an_older_checkpoint_writes_the_later_ones_anew(tiny_method, tmp_path):
    """What lies there may be the very damage that it was sent back for; it counts neither as written nor as one of the newest."""
    Trainer(tiny_method, 1).save(tmp_path, 2)
    Trainer(tiny_method, 2).save(tmp_path, 8)
    (tmp_path / checkpoints.LATEST).write_text("2")
    again = Trainer(tiny_method, 3, max_checkpoints=1)
    again.save(tmp_path, 6)
    assert checkpoints.latest(tmp_path) == tmp_path / "iter_0000006" and (tmp_path / "iter_0000006").is_dir()
    again.save(tmp_path, 8)
    resumed = Trainer(tiny_method, 0, max_checkpoints=1)
    assert resumed.load(checkpoints.latest(tmp_path)).step == 8 and same(resumed.tensors(), again.tensors())


def test_what_does_not_change_the_weights_may_change(tiny_method, tmp_path):
    folder = Trainer(tiny_method, 1).save(tmp_path, 1)
    other = Trainer(tiny_method, 0, save_interval=3, max_checkpoints=1, prefetch_depth=9)
    other.config = other.config.model_copy(
        update={"output_dir": "elsewhere", "model": other.config.model.model_copy(update={"target_model_path": "moved"})}
    )
    assert other.load(folder).step == 1


@pytest.mark.parametrize("pattern", ["shard-*.safetensors", "state.json", "run.json"])
@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_checkpoint_with_a_broken_file_is_refused_in_one_sentence(tiny_method, tmp_path, pattern, content):
    trainer = Trainer(tiny_method, 1)
    folder = trainer.save(tmp_path, 1)
    (file,) = folder.glob(pattern)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=pattern.split("*")[0]):
        trainer.load(folder)


def test_another_number_of_micro_batches_per_step_is_refused(tiny_method, tmp_path):
    folder = Trainer(tiny_method, 1, draft_accumulation_steps=2).save(tmp_path, 1, micro_batches_per_step=2)
    with pytest.raises(UserError, match="made with 2 micro-batches per step, but 1 ranks x training.draft_accumulation_steps=4 are 4"):
        Trainer(tiny_method, 0, draft_accumulation_steps=4).load(folder)


def test_a_pointer_to_a_checkpoint_that_someone_deleted_is_refused_in_one_sentence(tiny_method, tmp_path):
    trainer = Trainer(tiny_method, 1)
    shutil.rmtree(trainer.save(tmp_path, 1))
    with pytest.raises(UserError, match="iter_0000001"):
        trainer.load(checkpoints.latest(tmp_path))
