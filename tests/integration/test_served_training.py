"""`evaluation.served`: every checkpoint of a run is served, and a server that accepts otherwise than we do is an alarm everywhere.

The engine is the stand-in of tests/unit/serve, whose counts are planted: no draft of a run is known beforehand.
"""

import dataclasses
import json
import shlex
import sys

import pytest

from tests.tiny import recipe, write_chats, write_tiny_target
from torchspec.config import load_config
from torchspec.data.dataset import open_or_prepare
from torchspec.errors import UserError
from torchspec.export.hf import PROVENANCE
from torchspec.launch.run import launch
from torchspec.report.training_charts import training_charts
from torchspec.serve import engines
from torchspec.serve.training import server_of

STEPS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory, target_folder):
    folder = tmp_path_factory.mktemp("served")
    target = write_tiny_target(folder / "target", target_folder)
    train_file, held_out = write_chats(folder / "train.jsonl", 8), write_chats(folder / "heldout.jsonl", 3, first=100)
    recipe(folder / "run.yaml", target, train_file, held_out, num_epochs=2, save_interval=4)
    dataset = open_or_prepare(str(held_out), folder / "opened", target)
    known, committed = {}, 0
    for i in range(len(dataset)):
        ids = dataset[i].ids.tolist()
        start, end = dataset[i].spans()[0]
        known[",".join(map(str, ids[:start]))] = {"ids": ids[start:end], "accepted": [1] * 5}
        committed += end - start - 1
    (folder / "answers.json").write_text(json.dumps(known))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            engines.ENGINES, "vllm", dataclasses.replace(engines.ENGINES["vllm"], command=engines.module("tests.unit.serve.engine"))
        )
        arguments = f"--answers {shlex.quote(str(folder / 'answers.json'))}"
        overrides = ["evaluation.served=vllm", f"evaluation.served_python={sys.executable}", f"evaluation.served_args='{arguments}'"]
        config = load_config(str(folder / "run.yaml"), overrides)
        launch(config, server_of(config.evaluation))
    (folder / "run" / "committed.json").write_text(str(committed))
    return folder / "run"


def test_every_checkpoint_is_served_and_the_planted_counts_are_an_alarm(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    served = [row for row in rows if row["kind"] == "served"]
    assert [row["step"] for row in served] == [4, STEPS]
    tau = int((run / "committed.json").read_text()) / 15
    for row in served:
        assert (row["tau"], row["steps"], row["slot_acceptance"]) == (tau, 15, [1.0, 0.0, 0.0])
        assert row["gap"] == tau / row["own_tau"] - 1 and "the served draft is not the trained one" in row["alarm"]
    (chart,) = [chart for chart in training_charts(rows) if chart.name == "training_tau"]
    assert "counted by vllm" in chart.svg


def test_what_was_served_is_an_export(run):
    assert (run / "served" / "draft" / PROVENANCE).is_file()
    assert (run / "served" / "vllm_with_the_draft.log").is_file()


def test_an_engine_that_is_not_there_is_refused_before_anything_is_loaded(run):
    config = load_config(str(run.parent / "run.yaml"), ["evaluation.served=sglang", "model.target_model_path=nowhere"])
    with pytest.raises(UserError, match="evaluation.served=sglang needs sglang"):
        launch(config, server_of(config.evaluation))
