"""Ranks of one machine train what one process trains, with every method: losses, weights, checkpoints, however the batch is split."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.integration.ranks import Ranks
from tests.tiny import (
    DFLASH,
    DFLASH2,
    DOMINO,
    DSPARK,
    EAGLE3,
    LILICORR,
    PEAGLE,
    XPRESS,
    recipe,
    timeless_metrics,
    write_chats,
    write_tiny_target,
)
from tests.updates import assert_same_weights
from torchspec.training.checkpoints import LATEST, latest
from torchspec.training.tensors import read_weights

STEPS, SAVED, RATE = 4, 2, 3e-3
METHODS = {
    "dflash": DFLASH,
    "dflash2": DFLASH2,
    "domino": DOMINO,
    "dspark": DSPARK,
    "lilicorr": LILICORR,
    "xpress": XPRESS,
    "eagle3": EAGLE3,
    "peagle": PEAGLE,
}


@pytest.fixture(scope="module")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny_target(folder / "target", target_folder)
    write_chats(folder / "train.jsonl", 20)
    write_chats(folder / "heldout.jsonl", 4, first=100)
    return folder


class Trainer:
    """Trains one method's draft; every run has a name."""

    def __init__(self, folder: Path, method: str, ranks: Ranks):
        self.folder, self.method, self.ranks = folder, method, ranks

    def recipe(self, name: str, accumulation: int, optimizer: str = "adamw") -> Path:
        options = {"micro_batch_size": 1, "max_steps": STEPS, "save_interval": SAVED, "max_checkpoints": 3, "optimizer": optimizer}
        options["draft_accumulation_steps"], options["learning_rate"] = accumulation, RATE
        sources = (self.folder / "target", self.folder / "train.jsonl", self.folder / "heldout.jsonl")
        return recipe(self.folder / f"{self.method}-{name}.yaml", *sources, METHODS[self.method], **options)

    def __call__(self, name: str, ranks: int, accumulation: int, *overrides: str, optimizer: str = "adamw", nodes: int = 1) -> Path:
        out = self.folder / f"{self.method}-{name}"
        self.ranks.train(self.recipe(name, accumulation, optimizer), ranks, f"output_dir={out}", *overrides, nodes=nodes)
        return out


@pytest.fixture(scope="module", params=METHODS)
def train(request, folder, ranks) -> Trainer:
    return Trainer(folder, request.param, ranks)


def rows(out: Path, kind: str) -> list[dict]:
    return [row for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()) if row["kind"] == kind]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_weights(latest(out / "checkpoints"))


@pytest.fixture(scope="module")
def alone(train) -> Path:
    return train("alone", 1, 4)


@pytest.fixture(scope="module")
def sharded(train) -> Path:
    """Two ranks that each hold half of the draft and compute its layers again in the backward pass."""
    return train("sharded", 2, 2, "training.fsdp_strategy=FULL_SHARD", "training.activation_checkpointing=true")


def test_ranks_times_accumulation_is_one_batch(sharded, alone):
    assert_same(sharded, alone)


@pytest.mark.parametrize("train", ["dflash", "eagle3"], indirect=True)  # how ranks share work is no matter of a head
@pytest.mark.parametrize(("world", "accumulation", "strategy"), [(4, 1, "FULL_SHARD"), (2, 2, "REPLICATE")])
def test_so_it_is_of_four_ranks_and_of_whole_drafts(train, alone, world, accumulation, strategy):
    assert_same(train(f"{world}-{strategy}", world, accumulation, f"training.fsdp_strategy={strategy}"), alone)


@pytest.mark.parametrize("train", ["dflash"], indirect=True)
def test_two_nodes_of_two_ranks_shard_inside_and_replicate_across(train, alone):
    assert_same(train("hybrid", 4, 1, "training.fsdp_strategy=HYBRID", nodes=2), alone)


@pytest.mark.parametrize("train", ["dflash"], indirect=True)
def test_a_signal_that_one_rank_gets_stops_all_after_the_same_step(train):
    """The second rank gets it, and nobody else is told; the first one writes the checkpoint."""
    out, endless = train.folder / "signalled", [f"training.{key}=3000" for key in ("max_steps", "save_interval")]
    train.ranks.start(train.recipe("signalled", 1), 2, f"output_dir={out}", "training.num_epochs=300", *endless)
    while not (out / "metrics.jsonl").is_file() or not rows(out, "train"):
        time.sleep(0.01)  # asking without a pause would take a core from the run
    os.kill(train.ranks.processes[1].pid, signal.SIGTERM)
    assert train.ranks.ends_with(2) == [f"stopped by {signal.SIGTERM:d}"] * 2
    assert json.loads((latest(out / "checkpoints") / "state.json").read_text())["step"] == rows(out, "train")[-1]["step"]
    assert weights(out)


def stopped_halfway(run: Path, out: Path) -> Path:
    """A copy of a finished run without the weights of its last steps."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints" / f"iter_{STEPS:07d}")
    (out / "checkpoints" / LATEST).write_text(str(SAVED))
    return out


def assert_same(out: Path, alone: Path) -> None:
    for ours, theirs in zip(rows(out, "train"), rows(alone, "train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4) and ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert ours["tokens"] == theirs["tokens"]
    assert rows(out, "eval")[0]["tokens"] == rows(alone, "eval")[0]["tokens"]  # every held-out sample once
    assert_same_weights(weights(out), weights(alone), RATE)


@pytest.mark.parametrize("train", ["dflash"], indirect=True)
def test_muon_orthogonalises_the_whole_matrix_not_a_shard(train):
    """Its iterations run in bfloat16 and blow up small differences: 0.5% after some steps, where shard by shard would give 10%."""
    one, two = (train(f"muon{ranks}", ranks, 2 // ranks, optimizer="muon") for ranks in (1, 2))
    ours, theirs = weights(two), weights(one)
    for name in theirs:
        assert (ours[name] - theirs[name]).norm() < 0.02 * theirs[name].norm(), name


def test_a_run_goes_on_with_another_number_of_ranks(train, alone, sharded):
    out = stopped_halfway(sharded, train.folder / f"{train.method}-moved")
    assert len(list((out / "checkpoints" / f"iter_{SAVED:07d}").glob("shard-*.safetensors"))) == 2
    train("moved", 1, 4)
    assert_same_weights(weights(out), weights(alone), RATE)
    assert [row["step"] for row in rows(out, "train")] == [row["step"] for row in rows(alone, "train")]


@pytest.mark.parametrize("train", ["dflash", "peagle"], indirect=True)  # peagle brings a second tensor that is of the layers
def test_several_ranks_begin_with_given_weights_as_one_does(train, alone):
    """All but what reads the captured layers, which starts as it was built: all of them in test_start.py."""
    begin = (f"training.load_path={alone / 'checkpoints'}", "training.continual_training=true", "training.max_steps=1")
    begin = (*begin, "draft.target_layer_ids=[0,2]")
    one, two = train("begun1", 1, 4, *begin), train("begun2", 2, 2, *begin)
    account = json.loads((two / "start.json").read_text())
    assert account == json.loads((one / "start.json").read_text())
    assert set(account["fresh"]) == {"fc.weight", "mask_hidden"} & weights(alone).keys()
    assert rows(two, "train")[0]["loss"] == pytest.approx(rows(one, "train")[0]["loss"], rel=1e-4)
    assert rows(one, "train")[0]["loss"] < rows(alone, "train")[0]["loss"]  # the weights have learned before
    assert_same_weights(weights(two), weights(one), RATE)


def test_a_resumed_run_is_one_that_never_stopped(train, alone):
    out = stopped_halfway(alone, train.folder / f"{train.method}-resumed")
    train("resumed", 1, 4)
    ours, theirs = weights(out), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(out) == timeless_metrics(alone)
