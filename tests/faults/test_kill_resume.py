"""A run that is killed with SIGKILL, at several bad moments, and started again ends with the very weights of a run that was not."""

import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import recipe, timeless_metrics, write_chats, write_tiny_target
from torchspec.cli.main import main
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


class Runs:
    """Commands in processes that fork from one which has imported everything: a run that is to be killed begins at once."""

    def __init__(self, config: Path):
        self.config, self.context = config, multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torchspec.cli.main", "torchspec.launch.run", "torchspec.training.loop"])

    def start(self, out: Path) -> tuple[ForkServerProcess, Path]:
        """The process, and the file of what it prints."""
        printed = out.with_suffix(".log")
        run = self.context.Process(target=command, args=(["train", "-c", str(self.config), f"output_dir={out}"], printed))
        run.start()
        return run, printed

    def finish(self, out: Path) -> str:
        run, printed = self.start(out)
        run.join(DEADLINE)
        run.kill()  # does nothing to a run that has ended
        run.join()
        assert run.exitcode == 0, printed.read_text()
        return printed.read_text()

    def kill_when(self, out: Path, moment) -> None:
        (run, printed), until, came = self.start(out), time.monotonic() + DEADLINE, False
        while run.is_alive() and time.monotonic() < until and not (came := moment(out)):
            time.sleep(0.001)  # asking without a pause would take a core from the run
        run.kill()
        run.join()
        assert came and run.exitcode == -signal.SIGKILL, f"{moment.__name__} never came:\n{printed.read_text()}"


def command(arguments: list[str], printed: Path) -> None:
    """As typed, in a process of its own."""
    torch.set_num_threads(1)  # the same number of threads is part of the promise
    with printed.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["torchspec", *arguments]
    main()


def tensors(out: Path) -> dict[str, torch.Tensor]:
    """Weights and moments of the last checkpoint."""
    (shard,) = (out / "checkpoints" / f"iter_{STEPS:07d}").glob("shard-*.safetensors")
    return load_file(shard)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at_the_first_metrics(out: Path) -> bool:
    return (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size > 0


def while_a_checkpoint_is_written(out: Path) -> bool:
    return any((out / "checkpoints").glob(".partial_*"))


def right_after_a_checkpoint(out: Path) -> bool:
    return (out / "checkpoints" / LATEST).is_file()


def late(out: Path) -> bool:
    return (out / "checkpoints" / f"iter_{3 * SAVE_INTERVAL:07d}").is_dir()


@pytest.fixture(scope="module")
def runs(config) -> Runs:
    return Runs(config)


@pytest.fixture(scope="module")
def uninterrupted(runs) -> Path:
    out = runs.config.parent / "uninterrupted"
    runs.finish(out)
    return out


@pytest.mark.parametrize("moments", [(at_the_first_metrics, right_after_a_checkpoint), (while_a_checkpoint_is_written, late)])
def test_killed_twice_and_resumed_equals_never_killed_bitwise(runs, uninterrupted, moments):
    out = runs.config.parent / moments[0].__name__
    for moment in moments:
        runs.kill_when(out, moment)
    assert "resuming from" in runs.finish(out)
    assert same(tensors(out), tensors(uninterrupted))
    assert timeless_metrics(out) == timeless_metrics(uninterrupted)
    best = [json.loads((folder / "checkpoints" / BEST).read_text()) for folder in (out, uninterrupted)]
    assert best[0] == best[1]
