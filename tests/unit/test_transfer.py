"""The way from an engine's process to ours and from a worker to a trainer: what leaves is what arrives, and what is gone says so."""

import os
import subprocess
import sys

import pytest
import torch

from torchspec.capture import shared_memory
from torchspec.config import RunConfig
from torchspec.errors import ContractError, UserError
from torchspec.transfer.base import TRANSFERS, open_transfer


def config(**inference) -> RunConfig:
    values = {"output_dir": "none", "model": {"target_model_path": "none"}, "dataset": {"train_data_path": "none"}}
    return RunConfig(**values, inference={"num_workers": 1, **inference})


def test_states_are_read_once_and_bitwise():
    folder, states = shared_memory.new_folder(), torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    shared_memory.put(folder, "one", states)
    assert torch.equal(shared_memory.take(folder, "one", "engine"), states)
    assert not list(folder.iterdir())
    with pytest.raises(ContractError, match="engine answered and left no states"):
        shared_memory.take(folder, "one", "engine")
    folder.rmdir()


def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_stay():
    code = "from torchspec.capture.shared_memory import new_folder; print(new_folder())"
    left = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert os.path.isdir(left)
    first, second = shared_memory.new_folder(), shared_memory.new_folder()
    assert not os.path.exists(left) and first.is_dir()
    first.rmdir(), second.rmdir()


def test_every_transfer_of_the_config_is_registered():
    names = RunConfig.model_json_schema()["$defs"]["InferenceConfig"]["properties"]["transfer"]["enum"]
    assert set(names) == set(TRANSFERS)


def test_mooncake_without_a_master_or_without_its_library_is_one_sentence():
    with pytest.raises(UserError, match="inference.mooncake.master is not set|pip install 'torchspec\\[mooncake\\]'"):
        open_transfer(config(transfer="mooncake"), sends=False)
