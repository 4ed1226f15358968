"""What a run tells: a live line on a terminal, plain lines elsewhere, metrics.jsonl always, trackers when asked."""

import json
import time
from pathlib import Path

from torchspec.config import RunConfig
from torchspec.console import console
from torchspec.files.whole import whole
from torchspec.progress import live_line
from torchspec.report.diverging import diverging
from torchspec.training.checkpoint import TrainState
from torchspec.training.meter import suggested_split, verdict
from torchspec.training.trackers import open_trackers

METRICS = "metrics.jsonl"


class RunLog:
    """One line per `log` call in metrics.jsonl; the progress line shows step, loss, tokens/s, tau, who waits, and the time left.

    Only the main rank tells anything.
    """

    def __init__(self, config: RunConfig, step: int, total_steps: int, is_main: bool):
        self.config, self.is_main = config, is_main
        self.file = Path(config.output_dir) / METRICS
        if is_main:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self.rows = _forget_after(self.file, step) if is_main else []
        self.warned = False
        self.total_steps, self.started, self.first_step = total_steps, time.perf_counter(), step
        self.trackers = open_trackers(config) if is_main else []
        self.held_out_tau: float | None = None
        self.progress = live_line("train", console, is_main)
        self.task = self.progress.add_task("", total=total_steps, completed=step)

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *_error) -> None:
        self.progress.stop()
        for tracker in self.trackers:
            tracker.close()

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def train(self, step: int, loss: float, block_tau: float, tokens_per_second: float, row: dict) -> None:
        if not self.is_main:
            return
        self.write({"kind": "train", "step": step, "loss": loss, "block_tau": block_tau, "tokens_per_second": tokens_per_second, **row})
        held_out = "" if self.held_out_tau is None else f"  held-out τ {self.held_out_tau:.2f}"
        line = f"loss {loss:.3f}  {tokens_per_second:,.0f} tok/s  τ {block_tau:.2f}{held_out}{self._balance(row)}"
        self.progress.update(self.task, description=line, completed=step)
        if not console.is_terminal:
            left = (time.perf_counter() - self.started) / (step - self.first_step) * (self.total_steps - step)
            console.print(f"step {step}/{self.total_steps}  {line}  eta {int(left // 60)}:{int(left % 60):02d}")

    def _balance(self, row: dict) -> str:
        """Who limits the run. With capture in the trainer's own process there is nothing to wait for, and servers' devices are not ours."""
        inference, ranks = self.config.inference, self.config.training.num_ranks
        if inference.in_trainer:
            return ""
        text = f"  {verdict(row['wait'])} (wait {row['wait']:.0%}, {row['bytes_per_s'] / 1e6:,.0f} MB/s)"
        if inference.servers:
            return text
        workers = inference.num_workers
        split = suggested_split(row["wait"], workers, ranks)
        return text if split == (workers, ranks) else f"{text}, try {split[0]} capture + {split[1]} training"

    def evaluation(self, step: int, row: dict) -> None:
        if not self.is_main:
            return
        self.held_out_tau = row["tau"]
        self.write({"kind": "eval", "step": step, **row})
        console.print(
            f"step {step}: held-out τ {row['tau']:.3f} over {row['steps']} target forwards; "
            f"after every token {row['block_tau']:.2f}, on training text {row['training_block_tau']:.2f}"
        )

    def stopped(self, state: TrainState) -> None:
        if self.is_main:
            console.print(
                f"stopped at step {state.step} of {self.total_steps}: held-out τ has not risen above {state.best_tau:.3f} since step "
                f"{state.best_step} (evaluation.patience={self.config.evaluation.patience}); with a larger one the same command goes on"
            )

    def served(self, step: int, row: dict) -> None:
        self.write({"kind": "served", "step": step, **row})
        console.print(f"step {step}: {row['engine']} accepts τ {row['tau']:.3f}, our own walk over its text {row['own_tau']:.3f}")
        if row["alarm"]:
            console.print(f"ALARM: {row['alarm']}", style="bold red", markup=False)

    def write(self, row: dict) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        for tracker in self.trackers:
            tracker.write(row)
        self.rows.append(row)
        self._warn()

    def _warn(self) -> None:
        """Once, when a run begins to diverge."""
        sentence = diverging(self.rows)
        if sentence and not self.warned:
            console.print(f"WARNING: the run diverges: {sentence}", style="bold red", markup=False)
        self.warned = sentence is not None


def _forget_after(file: Path, step: int) -> list[dict]:
    """A resumed run writes its steps again; lines beyond the checkpoint, and one cut by a kill, go. -> what stays."""
    if not file.is_file():
        return []
    kept = []
    for line in file.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written when the run was killed
            continue
        if row["step"] <= step:
            kept.append(row)
    with whole(file) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return kept
