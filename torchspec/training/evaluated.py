"""What a run has measured of one of its checkpoints."""

import json
from pathlib import Path

from torchspec.report.results import with_interval
from torchspec.training.checkpoint import read_json
from torchspec.training.log import METRICS


def evaluation_of(checkpoint: Path) -> dict | None:
    """Its row of the run's metrics.jsonl; none where nothing was held out, or where the checkpoint has left its run."""
    step, metrics = read_json(checkpoint / "state.json")["step"], checkpoint.resolve().parent.parent / METRICS
    whole, _, _cut = metrics.read_text().rpartition("\n") if metrics.is_file() else ("", "", "")  # by a kill, where it was writing
    rows = map(json.loads, whole.splitlines())
    return next((row for row in rows if row["kind"] == "eval" and row["step"] == step), None)


def tau_of(checkpoint: Path) -> str:
    """For the end of a command."""
    row, step = evaluation_of(checkpoint), read_json(checkpoint / "state.json")["step"]
    if row is None:
        return f"not measured while it was trained, step {step}"
    return f"{with_interval(row['tau'], row['tau_interval'])} on held-out text, step {step}"
