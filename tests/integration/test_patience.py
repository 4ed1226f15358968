"""`evaluation.patience`: a run that no longer gets better stops, and what it counts on the way survives a kill.

The learning rate is next to nothing, so that held-out tau never rises after the first evaluation. Oracle: the run without patience.
"""

import json
import shutil

import pytest
import torch

from tests.tiny import recipe, timeless_metrics, write_chats, write_tiny_target
from torchspec.config import load_config
from torchspec.console import console
from torchspec.training.checkpoints import BEST, LATEST, best
from torchspec.training.loop import train
from torchspec.training.tensors import read_weights

STOPPED = "stopped at step 6 of 8: held-out τ has not risen above 1.000 since step 2 (evaluation.patience=2)"


@pytest.fixture(scope="module")
def run(tmp_path_factory, target_folder):
    """(folder, options...) -> what a run in that folder prints."""
    folder = tmp_path_factory.mktemp("patience")
    target = write_tiny_target(folder / "target", target_folder)
    texts = write_chats(folder / "train.jsonl", 16), write_chats(folder / "heldout.jsonl", 2, first=100)
    file = recipe(folder / "run.yaml", target, *texts, learning_rate=1e-12, min_lr=1e-12, save_interval=3, max_checkpoints=9)

    def start(out: str, *overrides: str) -> str:
        with console.capture() as printed:
            train(load_config(str(file), [f"output_dir={folder / out}", "evaluation.interval=2", *overrides]))
        return " ".join(printed.get().split())

    start.folder = folder
    start("whole")
    assert STOPPED in start("stopped", "evaluation.patience=2")
    return start


def evaluations(out) -> list[dict]:
    return [row for row in timeless_metrics(out) if row["kind"] == "eval"]


def test_it_stops_with_the_best_draft_and_a_checkpoint(run):
    out = run.folder / "stopped"
    assert [row["since_best"] for row in evaluations(out)] == [0, 1, 2]
    assert (out / "checkpoints" / LATEST).read_text() == "6"
    assert json.loads((out / "checkpoints" / BEST).read_text())["step"] == 2 and best(out / "checkpoints").is_dir()


def test_started_again_it_is_still_out_of_patience_and_with_more_it_ends_as_if_it_had_never_stopped(run):
    out = run.folder / "again"
    shutil.copytree(run.folder / "stopped", out)
    assert STOPPED in run("again", "evaluation.patience=2")
    assert timeless_metrics(out) == timeless_metrics(run.folder / "stopped")
    run("again", "evaluation.patience=4")
    assert timeless_metrics(out) == timeless_metrics(run.folder / "whole")
    ours, theirs = (read_weights(run.folder / name / "checkpoints" / "iter_0000008") for name in ("again", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_that_is_killed_between_two_evaluations_counts_on(run):
    """From the checkpoint after step 3, which knows of one evaluation and of the blocks of one step since."""
    out = run.folder / "killed"
    shutil.copytree(run.folder / "stopped", out)
    (out / "checkpoints" / LATEST).write_text("3")
    saved = json.loads((out / "checkpoints" / "iter_0000003" / "state.json").read_text())
    assert (saved["since_best"], saved["best_step"]) == (0, 2) and saved["blocks"] > 0
    assert STOPPED in run("killed", "evaluation.patience=2")
    assert timeless_metrics(out) == timeless_metrics(run.folder / "stopped")


def test_training_text_is_measured_over_all_blocks_since_the_last_evaluation(run):
    rows = timeless_metrics(run.folder / "whole")
    train_rows = {row["step"]: row["block_tau"] for row in rows if row["kind"] == "train"}
    assert sorted(train_rows) == [2, 3, 4, 6, 8]  # a line at every checkpoint and every evaluation
    found = {row["step"]: row["training_block_tau"] for row in evaluations(run.folder / "whole")}
    assert all(found[step] == train_rows[step] for step in (2, 6, 8))  # one line since: the same blocks
    assert found[4] == pytest.approx((train_rows[3] + train_rows[4]) / 2)  # two steps of equally many blocks
