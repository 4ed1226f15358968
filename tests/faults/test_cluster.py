"""Capture workers and trainer ranks killed with SIGKILL in the middle of a run on Ray: it goes on by itself, to the very same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.tiny import recipe, timeless_metrics, write_chats, write_tiny_target
from torchspec import checkpoint

DEADLINE, STEPS = 180.0, 40
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    target = write_tiny_target(folder / "target", target_folder)
    train, held_out = write_chats(folder / "train.jsonl", 90), write_chats(folder / "heldout.jsonl", 4, first=100)
    options = {"num_ranks": 2, "max_steps": STEPS, "save_interval": 5, "micro_batch_size": 1, "max_checkpoints": 20}
    return recipe(folder / "run.yaml", target, train, held_out, **options)


def start(config: Path, out: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torchspec", "train", "-c", str(config), f"output_dir={out}", *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True
    )


@pytest.fixture(scope="module")
def undisturbed(config) -> Path:
    """Two ranks under torchrun, each with its own target in its own process: no Ray."""
    out = config.parent / "undisturbed"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "torchspec", "train"]
    command = [*launcher, "-c", str(config), f"output_dir={out}"]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=DEADLINE)
    return out


def kill_one(run: subprocess.Popen, title: str) -> None:
    processes = [p for p in psutil.Process(run.pid).children(recursive=True) if title in " ".join(p.cmdline())]
    assert processes, f"no process {title}"
    processes[0].send_signal(signal.SIGKILL)


@pytest.mark.parametrize("victim", ["ray::CaptureWorker", "ray::RayTrainWorker"])
def test_a_killed_process_costs_time_and_changes_no_number(config, undisturbed, victim):
    out = config.parent / victim.removeprefix("ray::")
    run, until = start(config, out, "inference.num_workers=2"), time.monotonic() + DEADLINE
    while not (out / "checkpoints" / "iter_0000010").is_dir():
        assert run.poll() is None and time.monotonic() < until, run.stdout.read()
    kill_one(run, victim)
    output, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, output
    ours, theirs = (checkpoint.read_weights(checkpoint.latest(o / "checkpoints")) for o in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(out) == timeless_metrics(undisturbed)
    assert not (out / "dropped.jsonl").exists()
