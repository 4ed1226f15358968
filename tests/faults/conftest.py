"""A small run on Ray, and what it comes to when nobody is killed."""

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
from torchspec.training import checkpoints
from torchspec.training.tensors import read_weights
from torchspec.transfer.mooncake_master import free_port

DEADLINE, STEPS = 180.0, 40
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def config(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    target = write_tiny_target(folder / "target", target_folder)
    train, held_out = write_chats(folder / "train.jsonl", 90), write_chats(folder / "heldout.jsonl", 4, first=100)
    options = {"num_ranks": 2, "max_steps": STEPS, "save_interval": 5, "micro_batch_size": 1, "max_checkpoints": 20}
    return recipe(folder / "run.yaml", target, train, held_out, **options)


@pytest.fixture(scope="session")
def undisturbed(config) -> Path:
    """Two ranks under torchrun, as on two nodes, each with its own target in its own process: no Ray."""
    out = config.parent / "undisturbed"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    command = ["-m", "torchspec", "train", "-c", str(config), f"output_dir={out}"]
    port = free_port("127.0.0.1")
    nodes = [subprocess.Popen([*launcher, f"--master-port={port}", f"--node-rank={node}", *command], env=ENVIRONMENT) for node in range(2)]
    for node in nodes:
        assert node.wait(DEADLINE) == 0
    return out


def start(config: Path, out: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torchspec", "train", "-c", str(config), f"output_dir={out}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, text=True)


def wait_for_step_10(run: subprocess.Popen, out: Path) -> None:
    until = time.monotonic() + DEADLINE
    while not (out / "checkpoints" / "iter_0000010").is_dir():
        assert run.poll() is None and time.monotonic() < until, run.stdout.read()
        time.sleep(0.02)  # asking without a pause would take a core from the run


def kill_one(run: subprocess.Popen, title: str) -> None:
    processes = [p for p in psutil.Process(run.pid).children(recursive=True) if title in " ".join(p.cmdline())]
    assert processes, f"no process {title}"
    processes[0].send_signal(signal.SIGKILL)


def assert_same_outcome(out: Path, undisturbed: Path) -> None:
    ours, theirs = (read_weights(checkpoints.latest(o / "checkpoints")) for o in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(out) == timeless_metrics(undisturbed)
    assert not (out / "dropped.jsonl").exists()
