"""EAGLE-3 through the same trainer: ranks are one rank, a resumed run is one that never stopped, the export has the trainer's tau."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import EAGLE3, recipe, timeless_metrics, write_chats, write_tiny_target
from torchspec import checkpoint
from torchspec.config import load_config
from torchspec.data.dataset import PromptDataset
from torchspec.evaluate.acceptance import evaluate_offline
from torchspec.export.hf import export_checkpoint
from torchspec.export.pt import export_tensors
from torchspec.inference import load_pair
from torchspec.log import console
from torchspec.print_plan import print_plan

TOLERANCE = 2e-5  # as in test_ranks.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("eagle3")
    write_tiny_target(folder / "target", target_folder)
    write_chats(folder / "train.jsonl", 40)
    write_chats(folder / "heldout.jsonl", 6, first=100)
    return folder


def train(folder: Path, name: str, ranks: int, *overrides: str) -> Path:
    options = {"micro_batch_size": 1, "max_steps": 4, "save_interval": 2, "max_checkpoints": 3, "optimizer": "adamw"}
    options["draft_accumulation_steps"] = 2 // ranks
    file = recipe(folder / f"{name}.yaml", folder / "target", folder / "train.jsonl", folder / "heldout.jsonl", EAGLE3, **options)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    command = [sys.executable, "-m", *launcher, "torchspec", "train", "-c", str(file), f"output_dir={folder / name}"]
    command += [f"training.num_ranks={ranks}", *overrides]
    run = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / name


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(checkpoint.latest(out / "checkpoints"))


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    return train(folder, "alone", 1)


@pytest.mark.parametrize("recompute", [False, True])
def test_two_ranks_are_one(folder, alone, recompute):
    out = train(folder, f"ranks-{recompute}", 2, f"training.activation_checkpointing={str(recompute).lower()}")
    ours, theirs = weights(out), weights(alone)
    assert set(ours) == set(theirs) and {"lm_head.weight", "d2t", "t2d", "midlayer.mlp.up_proj.weight"} <= set(ours)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=TOLERANCE, msg=name)
    assert not torch.equal(ours["fc.weight"], checkpoint.read_weights(alone / "checkpoints" / "iter_0000002")["fc.weight"])  # it trains


def test_a_resumed_run_is_one_that_never_stopped(folder, alone):
    out = folder / "resumed"
    shutil.copytree(alone, out)
    shutil.rmtree(out / "checkpoints" / "iter_0000004")
    (out / "checkpoints" / checkpoint.LATEST).write_text("2")
    train(folder, "resumed", 1)
    ours, theirs = weights(out), weights(alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(out) == timeless_metrics(alone)


def test_the_export_has_the_trainers_tau_and_the_datas_vocabulary(folder, alone):
    pair = load_pair(
        export_checkpoint(checkpoint.latest(alone / "checkpoints"), folder / "draft"), str(folder / "target"), "float32", "cpu", False
    )
    prepared = {file.name.partition("-")[0]: PromptDataset(file) for file in (alone / "prepared").iterdir() if file.is_dir()}
    held_out, counts = prepared["heldout"], prepared["train"].token_counts(49152, supervised=True)
    tau = evaluate_offline(pair.method, pair.model, pair.target, [held_out[i] for i in range(4)]).tau
    told = [row["tau"] for row in map(json.loads, (alone / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "eval"]
    assert tau == told[-1]
    ids = pair.method.served_vocabulary(pair.model).ids
    assert counts[ids].min() >= counts[~pair.model.t2d].max()  # nothing left out is more frequent than what is kept
    coverage = float(counts[ids].sum() / counts.sum())
    assert pair.method.config.draft_vocab_coverage == coverage > 0.5
    with console.capture() as printed:
        print_plan(load_config(str(folder / "alone.yaml"), [f"output_dir={alone}"]))
    assert f"proposes 64 tokens, {coverage:.2%} of the supervised text" in " ".join(printed.get().split())


def test_one_file_holds_the_tensors_of_the_folder_and_maps_stay_integers(folder, alone):
    newest = checkpoint.latest(alone / "checkpoints")
    one = torch.load(export_tensors(newest, folder / "draft.pt"), weights_only=True)
    exported = load_file(export_checkpoint(newest, folder / "as_folder") / "model.safetensors")
    assert one.keys() == exported.keys() and one["d2t"].dtype == torch.int64 and one["t2d"].dtype == torch.bool
    assert all(torch.equal(one[name], exported[name]) and one[name].dtype == exported[name].dtype for name in exported)
