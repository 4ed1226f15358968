"""Where the lines of metrics.jsonl go as well: TensorBoard, W&B, MLflow, Trackio, SwanLab. One small adapter each, by public calls alone.

Servers, keys and offline modes are each tracker's own matter: WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_DIR, SWANLAB_MODE.
Every start of a run, a resumed one too, is a run of its own there.
"""

import json
from pathlib import Path
from typing import NamedTuple, Protocol

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.extras import need


class Tracker(Protocol):
    def write(self, row: dict) -> None:
        """A line of metrics.jsonl."""

    def close(self) -> None: ...


def asked_trackers(config: RunConfig) -> dict[str, str]:
    """Key with its value -> the extra that it needs."""
    values = {key: getattr(config.tracking, key) for key in TRACKERS}
    return {f"tracking.{key}={value}": TRACKERS[key].extra for key, value in values.items() if value}


def check_installed(config: RunConfig) -> None:
    """Before anything slow: a package that is missing is named with what brings it."""
    for asked, extra in asked_trackers(config).items():
        need(asked, extra)


def open_trackers(config: RunConfig) -> list[Tracker]:
    return [entry.adapter(config) for key, entry in TRACKERS.items() if getattr(config.tracking, key)]


def _numbers(row: dict) -> dict[str, float]:
    return {f"{row['kind']}/{key}": value for key, value in row.items() if isinstance(value, int | float) and key != "step"}


def _values(config: RunConfig) -> dict:
    return json.loads(config.model_dump_json())


def _flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    nested = [_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value} for key, value in values.items()]
    return {key: value for part in nested for key, value in part.items()}


def _name(config: RunConfig) -> str:
    return Path(config.output_dir).resolve().name


class TensorBoard:
    def __init__(self, config: RunConfig):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(config.output_dir) / "tensorboard"))

    def write(self, row: dict) -> None:
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    def __init__(self, config: RunConfig):
        import wandb

        self.run = wandb.init(project=config.tracking.wandb_project, config=_values(config), dir=config.output_dir)

    def write(self, row: dict) -> None:
        self.run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


class MLflow:
    def __init__(self, config: RunConfig):
        import mlflow

        self.mlflow, experiment = mlflow, config.tracking.mlflow_experiment
        try:
            mlflow.set_experiment(experiment)
            mlflow.start_run(run_name=_name(config))
            mlflow.log_params(_flat(_values(config)))
        except mlflow.MlflowException as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"tracking.mlflow_experiment={experiment}: MLflow refuses it ({reason}); set MLFLOW_TRACKING_URI") from error

    def write(self, row: dict) -> None:
        self.mlflow.log_metrics(_numbers(row), step=row["step"])

    def close(self) -> None:
        self.mlflow.end_run()


class Trackio:
    def __init__(self, config: RunConfig):
        import trackio

        self.run = trackio.init(project=config.tracking.trackio_project, name=_name(config), config=_values(config))

    def write(self, row: dict) -> None:
        self.run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


class SwanLab:
    def __init__(self, config: RunConfig):
        import swanlab

        folder = Path(config.output_dir) / "swanlab"
        self.run = swanlab.init(project=config.tracking.swanlab_project, name=_name(config), config=_values(config), log_dir=str(folder))

    def write(self, row: dict) -> None:
        self.run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self.run.finish()


class Entry(NamedTuple):
    extra: str
    adapter: type


TRACKERS = {  # key of `tracking` that asks for it
    "tensorboard": Entry("tensorboard", TensorBoard),
    "wandb_project": Entry("wandb", WandB),
    "mlflow_experiment": Entry("mlflow", MLflow),
    "trackio_project": Entry("trackio", Trackio),
    "swanlab_project": Entry("swanlab", SwanLab),
}
