"""A window of steps in PyTorch's profiler: what ran, on the host and on the device, and what it waited for."""

from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from torchspec.config import RunConfig
from torchspec.console import console
from torchspec.errors import UserError

FOLDER = "profile"


def check_window(config: RunConfig, total_steps: int) -> None:
    """Before a target is loaded: a window behind the end would never be written."""
    window = config.tracking.profile_steps
    if window is not None and window[1] > total_steps:
        raise UserError(f"tracking.profile_steps={list(window)} ends behind the run's last step, {total_steps}; choose earlier steps")


class Profiler:
    """The main rank's steps tracking.profile_steps, counted as the log counts them, both included. The step before warms the profiler.

    A run that is resumed inside of the window or behind it records nothing.
    """

    def __init__(self, config: RunConfig, done: int, device: torch.device, is_main: bool):
        """done: steps before this start."""
        window, self.profile = config.tracking.profile_steps, None
        if window is None or not is_main or window[0] <= done:
            return
        self.file = Path(config.output_dir) / FOLDER / f"steps-{window[0]}-{window[1]}.json"
        cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self.profile = profile(
            activities=[ProfilerActivity.CPU, *cuda],
            schedule=lambda steps: _action(done + 1 + steps, *window),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> "Profiler":
        if self.profile is not None:
            self.profile.start()
        return self

    def __exit__(self, *_error) -> None:
        if self.profile is not None:
            self.profile.stop()

    def step(self) -> None:
        """At the end of every step."""
        if self.profile is not None:
            self.profile.step()

    def _write(self, recorded: profile) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self.file))
        console.print(f"profile of these steps: {self.file} (chrome://tracing, or ui.perfetto.dev)", markup=False)


def _action(step: int, first: int, last: int) -> ProfilerAction:
    if first <= step <= last:
        return ProfilerAction.RECORD_AND_SAVE if step == last else ProfilerAction.RECORD
    return ProfilerAction.WARMUP if step == first - 1 else ProfilerAction.NONE
