"""EAGLE-3's own part of a run: the tensors of its checkpoints, the vocabulary that its data chose, the export's tau."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import EAGLE3, VOCABULARY, recipe, write_chats, write_tiny_target
from torchspec.config import load_config
from torchspec.console import console
from torchspec.data.dataset import PromptDataset
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import load_pair
from torchspec.export.hf import export_checkpoint
from torchspec.export.pt import export_tensors
from torchspec.launch.plan import print_plan
from torchspec.training import checkpoints
from torchspec.training.loop import train
from torchspec.training.tensors import read_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("eagle3")
    write_tiny_target(folder / "target", target_folder)
    write_chats(folder / "train.jsonl", 40)
    write_chats(folder / "heldout.jsonl", 6, first=100)
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    sources = (folder / "target", folder / "train.jsonl", folder / "heldout.jsonl")
    options = {"micro_batch_size": 1, "max_steps": 4, "save_interval": 2, "draft_accumulation_steps": 2, "optimizer": "adamw"}
    config = load_config(str(recipe(folder / "alone.yaml", *sources, EAGLE3, **options)), [f"output_dir={folder / 'alone'}"])
    train(config)
    return Path(config.output_dir)


def test_it_trains_and_its_checkpoints_name_the_formats_tensors(alone):
    before, after = (read_weights(alone / "checkpoints" / f"iter_000000{step}") for step in (2, 4))
    assert {"lm_head.weight", "d2t", "t2d", "midlayer.mlp.up_proj.weight"} <= set(after)
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_the_export_has_the_trainers_tau_and_the_datas_vocabulary(folder, alone):
    pair = load_pair(
        export_checkpoint(checkpoints.latest(alone / "checkpoints"), folder / "draft"), str(folder / "target"), "float32", "cpu", False
    )
    prepared = {file.name.partition("-")[0]: PromptDataset(file) for file in (alone / "prepared").iterdir() if file.is_dir()}
    held_out, counts = prepared["heldout"], prepared["train"].token_counts(VOCABULARY, supervised=True)
    tau = evaluate_offline(pair.method, pair.model, pair.target, [held_out[i] for i in range(4)]).tau
    told = [row["tau"] for row in map(json.loads, (alone / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "eval"]
    assert tau == told[-1]
    ids = pair.method.served_vocabulary(pair.model).ids
    assert counts[ids].min() >= counts[~pair.model.t2d].max()  # nothing left out is more frequent than what is kept
    coverage = float(counts[ids].sum() / counts.sum())
    assert pair.method.config.draft_vocab_coverage == coverage > 0.5
    with console.capture() as printed:
        print_plan(load_config(str(folder / "alone.yaml"), [f"output_dir={alone}"]))
    assert f"proposes 64 tokens, {coverage:.2%} of the supervised text" in " ".join(printed.get().split())


def test_one_file_holds_the_tensors_of_the_folder_and_maps_stay_integers(folder, alone):
    newest = checkpoints.latest(alone / "checkpoints")
    one = torch.load(export_tensors(newest, folder / "draft.pt"), weights_only=True)
    exported = load_file(export_checkpoint(newest, folder / "as_folder") / "model.safetensors")
    assert one.keys() == exported.keys() and one["d2t"].dtype == torch.int64 and one["t2d"].dtype == torch.bool
    assert all(torch.equal(one[name], exported[name]) and one[name].dtype == exported[name].dtype for name in exported)
