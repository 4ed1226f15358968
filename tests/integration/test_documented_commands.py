"""The three commands of the field, typed as documented in a folder of one's own, with every key that the field's recipes use."""

import os
import runpy
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import write_tiny_target
from torchspec.export.hf import export_checkpoint
from torchspec.training.tensors import read_weights

ROOT = Path(__file__).parents[2]
RECIPE = """
output_dir: outputs/elsewhere
model:
  target_model_path: target
dataset:
  train_data_path: data/none.jsonl
  min_loss_tokens: 4
  shuffle_dataset: true
training:
  micro_batch_size: 1
  draft_accumulation_steps: 2
  learning_rate: 6.0e-4
  min_lr: 6.0e-5
  weight_decay: 0.01
  warmup_ratio: 0.04
  lr_decay_style: WSD
  wsd_decay_ratio: 0.2
  wsd_decay_style: cosine
  max_grad_norm: 1.0
  num_epochs: 2
  seed: 42
  fsdp_strategy: REPLICATE
  prefetch_depth: 8
  save_interval: 5
  save_per_epoch: true
  max_checkpoints: 2
  load_path: null
  continual_training: false
inference:
  inference_engine_type: hf
draft:
  num_layers: 1
  block_size: 4
"""


def typed(*arguments: str) -> int:
    """In this process, which has imported everything already. -> exit code"""
    module, *options = arguments[1:] if arguments[0] == "-m" else arguments
    run = runpy.run_module if arguments[0] == "-m" else runpy.run_path
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *options])
        try:
            run(module, run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
    return 0


@pytest.fixture(scope="module")
def here(tmp_path_factory, target_folder) -> Path:
    """A user's folder: scripts and a recipe, a target, and the data set where the hub's loader looks first."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "configs").mkdir()
    (folder / "configs" / "sglang_qwen3_8b_dflash.yaml").write_text(RECIPE)
    write_tiny_target(folder / "target", target_folder)
    turns = [[("human", f"What is {i} + {i}?"), ("gpt", f"The sum is {2 * i}, which is even.")] for i in range(60)]
    rows = [{"conversations": [{"from": who, "value": text} for who, text in row], "source": "made up"} for row in turns]
    (folder / "mlabonne" / "open-perfectblend").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(folder / "mlabonne" / "open-perfectblend" / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def trained(here) -> Path:
    overrides = ("dataset.train_data_path=data/perfectblend_50k.jsonl", "output_dir=./outputs/qwen3-8b-dflash")
    command = (sys.executable, "-m", "torchspec.train_entry", "--config", "configs/sglang_qwen3_8b_dflash.yaml", *overrides)
    with chdir(here):
        assert typed("scripts/tools/prepare_perfectblend.py", "--output", "data/perfectblend_50k.jsonl", "--sample-size", "20") == 0
    done = subprocess.run(command, cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return here / "outputs" / "qwen3-8b-dflash"


def test_checkpoints_lie_where_the_field_looks(trained):
    """20 samples in steps of two, twice: an epoch is ten steps; the newest two stay."""
    found = trained / "checkpoints"
    assert (found / "latest_checkpointed_iteration.txt").read_text() == "20"
    assert sorted(p.name for p in found.glob("iter_*")) == ["iter_0000015", "iter_0000020"]


def test_the_extracted_file_holds_the_tensors_of_the_export(here, trained, tmp_path):
    iteration = "outputs/qwen3-8b-dflash/checkpoints/iter_0000020"
    with chdir(here):
        assert typed("scripts/tools/extract_dflash_checkpoint.py", "--checkpoint_dir", iteration, "--output", "dflash_draft.pt") == 0
    tensors = torch.load(here / "dflash_draft.pt", weights_only=True)
    export_checkpoint(here / iteration, tmp_path / "draft")
    expected, masters = load_file(tmp_path / "draft" / "model.safetensors"), read_weights(here / iteration)
    assert type(tensors) is dict and tensors.keys() == expected.keys() == masters.keys()
    for name in expected:
        assert torch.equal(tensors[name], expected[name]) and torch.equal(tensors[name], masters[name].bfloat16()), name


def test_a_relative_path_that_leads_nowhere_is_told_in_full(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    command = ("-m", "torchspec.train_entry", "--config", "configs/sglang_qwen3_8b_dflash.yaml")
    for arguments, where in (
        ((*command, "dataset.train_data_path=data/missing.jsonl"), here / "data" / "missing.jsonl"),
        ((*command, "model.target_model_path=./missing"), here / "missing"),
        (("-m", "torchspec.train_entry", "--config", "configs/missing.yaml"), here / "configs" / "missing.yaml"),
        (
            ("scripts/tools/extract_dflash_checkpoint.py", "--checkpoint_dir", "outputs/missing", "--output", "a.pt"),
            here / "outputs" / "missing",
        ),
    ):
        assert typed(*arguments) == 2
        assert str(where) in capsys.readouterr().err
