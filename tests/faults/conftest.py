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

DEADLINE, STEPS = 400.0, 40  # seconds until a run counts as hanging; Ray alone takes a minute to start on two slow cores
# Ray's own processes would give way to whatever tests beside them
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


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
    """What it prints goes to a file: a pipe stays open as long as any of Ray's processes lives, and reading it would wait for all."""
    command = [sys.executable, "-m", "torchspec", "train", "-c", str(config), f"output_dir={out}", *overrides]
    with printed(out).open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT)


def printed(out: Path) -> Path:
    return out.with_suffix(".log")


def give_up(run: subprocess.Popen, out: Path, waited_for: str) -> None:
    """Ends the run with all its processes, and says what it said."""
    if hangs := run.poll() is None:
        for process in [*psutil.Process(run.pid).children(recursive=True), run]:
            process.kill()
    how = f"hangs for {DEADLINE:.0f} s" if hangs else f"ended with exit code {run.returncode}"
    pytest.fail(f"{waited_for} did not come, the run {how}; it said:\n{printed(out).read_text()}")


def wait_for_step(step: int, run: subprocess.Popen, out: Path) -> None:
    until = time.monotonic() + DEADLINE
    while not (out / "checkpoints" / f"iter_{step:07d}").is_dir():
        if run.poll() is not None or time.monotonic() > until:
            give_up(run, out, f"the checkpoint of step {step}")
        time.sleep(0.02)  # asking without a pause would take a core from the run


def finished(run: subprocess.Popen, out: Path) -> str:
    """What it has printed when it has ended by itself."""
    try:
        run.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        give_up(run, out, "the end after the kill")
    return printed(out).read_text()


def kill_one(run: subprocess.Popen, title: str) -> None:
    processes = [p for p in psutil.Process(run.pid).children(recursive=True) if title in " ".join(p.cmdline())]
    assert processes, f"no process {title}"
    processes[0].send_signal(signal.SIGKILL)


def check_killed_one_after_another(config: Path, undisturbed: Path, name: str, victims: dict[int, str], *overrides: str) -> None:
    """victims: step whose checkpoint is awaited -> the process that is killed then."""
    out = config.parent / name
    run = start(config, out, *overrides)
    for step, victim in victims.items():
        wait_for_step(step, run, out)
        kill_one(run, victim)
    output = finished(run, out)
    assert run.returncode == 0, output
    assert_same_outcome(out, undisturbed)


def assert_same_outcome(out: Path, undisturbed: Path) -> None:
    ours, theirs = (read_weights(checkpoints.latest(o / "checkpoints")) for o in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless_metrics(out) == timeless_metrics(undisturbed)
    assert not (out / "dropped.jsonl").exists()
