"""A run that is killed with SIGKILL, at several bad moments, and started again ends with the very weights of a run that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import recipe, timeless_metrics, write_chats, write_tiny_target
from torchspec.training.checkpoints import BEST, LATEST

STEPS, SAVE_INTERVAL = 12, 3
DEADLINE = 120.0  # seconds until a run that makes no progress counts as hanging


@pytest.fixture(scope="module")
def config(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    target = write_tiny_target(folder / "target", target_folder)
    train, held_out = write_chats(folder / "train.jsonl", 40), write_chats(folder / "heldout.jsonl", 4, first=100)
    options = {"max_steps": STEPS, "num_epochs": 2, "save_interval": SAVE_INTERVAL, "draft_accumulation_steps": 2, "max_checkpoints": 2}
    return recipe(folder / "run.yaml", target, train, held_out, **options)


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torchspec", "train", "-c", str(config), f"output_dir={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the same number of threads is part of the promise
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True)


def finish(config: Path, out: Path) -> str:
    run = start(config, out)
    output, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, output
    return output


def kill_when(config: Path, out: Path, moment) -> None:
    run, until = start(config, out), time.monotonic() + DEADLINE
    while not moment(out):
        assert run.poll() is None, f"the run ended before the moment of the kill:\n{run.stdout.read()}"
        assert time.monotonic() < until, "the moment of the kill never came"
        time.sleep(0.001)  # asking without a pause would take a core from the run
    run.send_signal(signal.SIGKILL)
    run.wait()


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the last checkpoint."""
    (shard,) = (out / "checkpoints" / f"iter_{STEPS:07d}").glob("shard-*.safetensors")
    return load_file(shard)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


MOMENTS = {
    "after the first metrics": lambda out: (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size > 0,
    "while a checkpoint is written": lambda out: any((out / "checkpoints").glob(".partial_*")),
    "right after a checkpoint": lambda out: (out / "checkpoints" / LATEST).is_file(),
    "late": lambda out: (out / "checkpoints" / f"iter_{3 * SAVE_INTERVAL:07d}").is_dir(),
}


@pytest.fixture(scope="module")
def uninterrupted(config) -> Path:
    out = config.parent / "uninterrupted"
    finish(config, out)
    return out


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_never_killed_bitwise(config, uninterrupted, moment):
    out = config.parent / moment.replace(" ", "-")
    kill_when(config, out, MOMENTS[moment])
    finish(config, out)
    assert same(tensors(out), tensors(uninterrupted))
    assert timeless_metrics(out) == timeless_metrics(uninterrupted)
    best = [json.loads((folder / "checkpoints" / BEST).read_text()) for folder in (out, uninterrupted)]
    assert best[0] == best[1]


def test_a_run_killed_twice_still_equals(config, uninterrupted):
    out = config.parent / "twice"
    kill_when(config, out, MOMENTS["right after a checkpoint"])
    kill_when(config, out, MOMENTS["late"])
    assert "resuming from" in finish(config, out)
    assert same(tensors(out), tensors(uninterrupted))
