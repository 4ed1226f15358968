"""Each tracker's own store holds the numbers of metrics.jsonl. The real packages, without network; skipped where one is absent."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.training import trackers
from torchspec.training.trackers import TRACKERS, check_installed, open_trackers

ROWS = [
    {"kind": "train", "step": 2, "loss": 2.0, "slots": [0.5, 0.25]},
    {"kind": "train", "step": 4, "loss": 1.0, "slots": [0.5, 0.75]},
    {"kind": "eval", "step": 4, "tau": 1.5},
]
NUMBERS = {"train/loss": [(2, 2.0), (4, 1.0)], "eval/tau": [(4, 1.5)]}


def config(folder: Path, **tracking) -> RunConfig:
    return RunConfig(output_dir=str(folder / "run"), model={"target_model_path": "t"}, dataset={"train_data_path": "d"}, tracking=tracking)


def tracked(folder: Path, **tracking) -> None:
    for tracker in open_trackers(config(folder, **tracking)):
        for row in ROWS:
            tracker.write(row)
        tracker.close()


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed; it is an extra")


@needs("mlflow")
def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store of mlflow-skinny that is no server
    from mlflow import MlflowClient

    tracked(tmp_path, mlflow_experiment="drafts")
    client = MlflowClient(f"file://{tmp_path}/mlruns")
    (run,) = client.search_runs([client.get_experiment_by_name("drafts").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["training.learning_rate"] == "0.0006" and run.data.params["tracking.mlflow_experiment"] == "drafts"
    for name, expected in NUMBERS.items():
        assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)] == expected


@needs("trackio")
def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    tracked(tmp_path, trackio_project="drafts")
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("drafts", "run")
    for name, expected in NUMBERS.items():
        assert [(log["step"], log[name]) for log in logs if name in log] == expected


@needs("swanlab")
def test_swanlab(tmp_path, monkeypatch):
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    tracked(tmp_path, swanlab_project="drafts")
    (record,) = (tmp_path / "run" / "swanlab").glob("run-*/*.swanlab")
    assert all(name.encode() in record.read_bytes() for name in NUMBERS)


@pytest.mark.parametrize("key", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_opened(key, tmp_path, monkeypatch):
    value, extra = True if key == "tensorboard" else "drafts", TRACKERS[key].extra
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(UserError, match=rf"^tracking.{key}={value} needs {extra}: pip install 'torchspec\[{extra}\]'"):
        check_installed(config(tmp_path, **{key: value}))
    check_installed(config(tmp_path))


def test_only_numbers_of_a_row_travel():
    assert trackers._numbers({**ROWS[0], "engine": "vllm"}) == {"train/loss": 2.0}
    assert json.loads(json.dumps(trackers._values(config(Path("x")))))["training"]["num_ranks"] == 1
