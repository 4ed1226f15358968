"""The way from an engine's process to ours and from a worker to a trainer: what leaves is what arrives, and what is gone says so."""

import math
import os
import subprocess

import pytest
import torch

from torchspec.capture import shared_memory
from torchspec.capture.outbox import Delivery, Outbox, new_name
from torchspec.config import RunConfig
from torchspec.errors import ContractError, UserError
from torchspec.records import Features, Prompt
from torchspec.transfer.base import TRANSFERS, open_transfer
from torchspec.transfer.codec import decode, encode

ONE = new_name()


def config(**inference) -> RunConfig:
    values = {"output_dir": "none", "model": {"target_model_path": "none"}, "dataset": {"train_data_path": "none"}}
    return RunConfig(**values, inference={"num_workers": 1, **inference})


@pytest.fixture
def folder():
    folder = shared_memory.new_folder()
    yield folder
    folder.rmdir()  # nothing is left in it


def prompt(length: int) -> Prompt:
    return Prompt(4, torch.arange(length), torch.arange(length) > 2)


def through(folder, context: torch.Tensor, fp8: bool = False) -> tuple[Features, torch.Tensor]:
    """The features that our process makes of an engine's states, and the last state."""
    Outbox(Delivery(str(folder), [1, 3], fp8), "none").put(ONE, context, context[-1, -16:])
    states = shared_memory.take(folder, ONE, "engine")
    return states.features(prompt(len(context)), (1, 3), "engine"), states.last


@pytest.fixture
def context() -> torch.Tensor:
    """[L, K*H_t], K=2: layers and tokens of different sizes."""
    sizes = torch.logspace(-2, 3, 7)[:, None] * torch.tensor([1.0, 50.0]).repeat_interleave(16)
    return (torch.randn(7, 32, generator=torch.Generator().manual_seed(0)) * sizes).bfloat16()


def test_states_are_read_once_and_bitwise(folder, context):
    features, last = through(folder, context)
    assert torch.equal(features.context, context) and torch.equal(last, context[-1, -16:]) and features.scales is None
    with pytest.raises(ContractError, match="engine answered and left no states"):
        shared_memory.take(folder, ONE, "engine")


def test_what_an_engine_rounds_is_what_we_would_have_rounded(folder, context):
    """Oracle: the rounding of a worker that has the whole states. One byte a value leaves the engine."""
    features, _ = through(folder, context, fp8=True)
    assert features.context.nbytes == context.numel()
    ours, theirs = (encode(f, fp8=True) for f in (Features(prompt(7), context, (1, 3), "engine"), features))
    assert (ours.data == theirs.data).all() and (ours.scales == theirs.scales).all()
    assert torch.equal(*(decode(w, prompt(7), torch.device("cpu"), torch.bfloat16).context for w in (ours, theirs)))


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "NaN or infinity"), (math.inf, "NaN or infinity"), (0.0, "token 5 at layer 3 are all zero")]
)
def test_rows_are_judged_by_what_the_engine_measured_before_it_rounded(folder, context, value, reason, fp8):
    context[5, 16:] = value
    with pytest.raises(ContractError, match=f"sample 4 captured by engine.*{reason}"):
        through(folder, context, fp8)


def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_stay():
    dead = subprocess.Popen(["true"])
    dead.wait(60)
    left = shared_memory.ROOT / f"{shared_memory.PREFIX}{dead.pid}-left"
    left.mkdir()
    first, second = shared_memory.new_folder(), shared_memory.new_folder()
    assert not left.exists() and first.is_dir() and f"-{os.getpid()}-" in first.name
    first.rmdir(), second.rmdir()


def test_every_transfer_of_the_config_is_registered():
    names = RunConfig.model_json_schema()["$defs"]["InferenceConfig"]["properties"]["transfer"]["enum"]
    assert set(names) == set(TRANSFERS)


def test_mooncake_without_a_master_or_without_its_library_is_one_sentence():
    with pytest.raises(UserError, match="inference.mooncake.master is not set|pip install 'torchspec\\[mooncake\\]'"):
        open_transfer(config(transfer="mooncake"), sends=False)
