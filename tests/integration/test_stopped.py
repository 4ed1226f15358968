"""Runs that a signal stops: a checkpoint within the step, the way on, the exit code. Oracle: a run that was never stopped, bitwise."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import recipe, write_chats, write_tiny_target
from torchspec import signals
from torchspec.config import load_config
from torchspec.errors import Stopped
from torchspec.training import checkpoints
from torchspec.training.build import in_process
from torchspec.training.loop import train

STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    target = write_tiny_target(folder / "target", target_folder)
    train_file, held_out = write_chats(folder / "train.jsonl", 40), write_chats(folder / "heldout.jsonl", 2, first=100)
    return recipe(folder / "run.yaml", target, train_file, held_out, max_steps=STEPS, save_interval=100, draft_accumulation_steps=2)


@pytest.fixture(scope="module")
def whole(config) -> Path:
    """Never stopped."""
    out = config.parent / "whole"
    train(load_config(str(config), [f"output_dir={out}"]))
    return out


def signalling(number: int, request: int):
    """Features of this process; while it captures micro-batch `request` of the run, the system sends it a signal."""

    def supply(*arguments):
        source, capture = in_process(*arguments)
        return Interrupted(source, number, request), capture

    return supply


class Interrupted:
    def __init__(self, source, number: int, request: int):
        self.source, self.number, self.left = source, number, request

    def request(self, prompts):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return self.source.request(prompts)


def last(out: Path) -> dict[str, torch.Tensor]:
    """Weights and moments."""
    (shard,) = checkpoints.latest(out / "checkpoints").glob("shard-*.safetensors")
    return load_file(shard)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_stopped_run_saves_within_its_step_and_goes_on_bitwise(config, whole, number):
    """The fourth micro-batch is the second of step 2: that step is finished, evaluation is every fourth."""
    out = config.parent / f"stopped-{number}"
    run, before = load_config(str(config), [f"output_dir={out}", "training.prefetch_depth=1"]), signal.getsignal(number)
    with pytest.raises(Stopped, match="torchspec train was stopped: the same command goes on from .*iter_0000002") as stopped:
        train(run, signalling(number, 4))
    assert stopped.value.number == number and signal.getsignal(number) == before
    assert [folder.name for folder in (out / "checkpoints").glob("*iter*[0-9]")] == ["iter_0000002"]
    train(run)
    assert same(last(out), last(whole))
    evaluations = [[row for row in rows(folder) if row["kind"] == "eval"] for folder in (out, whole)]
    assert [[(row["step"], row["tau"]) for row in of] for of in evaluations] == [[(row["step"], row["tau"]) for row in evaluations[1]]] * 2


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_signal_in_the_last_step_finds_a_finished_run(config, whole):
    out = config.parent / "late"
    state = train(load_config(str(config), [f"output_dir={out}", "training.prefetch_depth=1"]), signalling(signal.SIGTERM, 2 * STEPS))
    assert state.step == STEPS and same(last(out), last(whole))
