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
    try:
        assert [node.wait(DEADLINE) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()  # does nothing to one that has ended
    return out


def start(config: Path, out: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torchspec", "train", "-c", str(config), f"output_dir={out}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, text=True)


def wait_for_step(step: int, run: subprocess.Popen, out: Path) -> None:
    until = time.monotonic() + DEADLINE
    while not (out / "checkpoints" / f"iter_{step:07d}").is_dir():
        if run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)  # asking without a pause would take a core from the run
            continue
        run.kill()  # its output ends with it, where it hangs
        pytest.fail(f"no checkpoint of step {step} within {DEADLINE:.0f} s; the run said:\n{run.stdout.read()}")


def kill_one(run: subprocess.Popen, title: str) -> None:
    processes = [p for p in psutil.Process(run.pid).children(recursive=True) if title in " ".join(p.cmdline())]
    assert processes, f"no process {title}"
    processes[0].send_signal(signal.SIGKILL)


def finished(run: subprocess.Popen) -> str:
    """Its output, when it has ended by itself."""
    try:
        return run.communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        run.kill()
        pytest.fail(f"the run did not end within {DEADLINE:.0f} s after the kill; it said:\n{run.communicate()[0]}")


def check_killed_one_after_another(config: Path, undisturbed: Path, name: str, victims: dict[int, str], *overrides: str) -> None:
    """victims: step whose checkpoint is awaited -> the process that is killed then."""
    out = config.parent / name
    run = start(config, out, *overrides)
    for step, victim in victims.items():
        wait_for_step(step, run, out)
        kill_one(run, victim)
    output = finished(run)
    assert run.returncode == 0, output
    assert_same_outcome(out, undisturbed)


def assert_same_outcome(out: Path, undisturbed: Path) -> None:
    ours, theirs = (read_weights(checkpoints.latest(o / "checkpoints")) for o in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(out) == timeless_metrics(undisturbed)
    assert not (out / "dropped.jsonl").exists()
