"""DSpark's own part of a run: what is trained is exported, measured, calibrated, and decoded with drafts that stop early."""

import json
from pathlib import Path

import pytest

from tests.tiny import DSPARK, recipe, write_chats, write_tiny_target
from torchspec.cli.draft import calibrate
from torchspec.config import load_config
from torchspec.decode.pair import load_pair
from torchspec.evaluate.run import Settings, evaluate_draft
from torchspec.export.hf import export_checkpoint
from torchspec.training import checkpoints
from torchspec.training.loop import train

SLOTS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("dspark")
    write_tiny_target(folder / "target", target_folder)
    write_chats(folder / "train.jsonl", 40)
    write_chats(folder / "heldout.jsonl", 3, first=100)
    sources = (folder / "target", folder / "train.jsonl", folder / "heldout.jsonl")
    options = {"micro_batch_size": 1, "max_steps": 4, "save_interval": 4}
    file = recipe(folder / "run.yaml", *sources, {**DSPARK, "markov_head_type": "gated"}, **options)
    train(load_config(str(file), [f"output_dir={folder / 'run'}"]))
    export_checkpoint(checkpoints.latest(folder / "run" / "checkpoints"), folder / "draft")
    return folder


def test_a_run_tells_what_the_heads_learn(folder):
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "train"][-1]
    for name in ("slot_overlap", "slot_confidence", "slot_confidence_error"):
        assert len(last[name]) == SLOTS and all(0 <= x <= 1 for x in last[name])
    assert last["slot_confidence"] != [0.5] * SLOTS  # where it started


def test_temperatures_are_fitted_beside_the_weights_and_stop_drafts_of_the_same_text(folder):
    calibrate(folder / "draft", str(folder / "target"), str(folder / "heldout.jsonl"), 2, folder / "cache", "float32", "cpu")
    written = json.loads((folder / "draft" / "sts.json").read_text())
    assert written.keys() == {"temperatures", "dataset", "num_samples", "ece_before", "ece_after"} and written["num_samples"] == 2
    assert all(b <= a for a, b in zip(written["ece_before"], written["ece_after"], strict=True))
    pair = load_pair(folder / "draft", str(folder / "target"), "float32", "cpu", False)
    assert pair.method.temperatures == written["temperatures"]
    settings = Settings(decode=1, max_new_tokens=10, limit=2, least_survival=0.4)
    results = evaluate_draft(pair, {"heldout": str(folder / "heldout.jsonl")}, folder / "out", settings)
    assert results["offline"]["confidence"]["calibration_error"] == pytest.approx(written["ece_after"], abs=1e-9)
    assert results["decode"]["mismatches"] == 0 and results["decode"]["draft_tokens"] < SLOTS * results["decode"]["steps"]
