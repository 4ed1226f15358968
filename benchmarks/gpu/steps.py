"""Steps of a small draft: does it learn, twice the same, without waiting for the GPU; and what recomputing and compiling change."""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from gpu.place import Place, relative, within
from torch import Tensor
from train_step import Ours, Shape

import torchspec
from torchspec.training.distributed import parallelise
from torchspec.training.loop import Window

TINY = Shape(64, 128, 4, 2, 16, 500, 8, (1, 3, 5), 2, 4, 8, (60, 43), 10, 400)
SMALL = Shape(512, 1536, 8, 4, 64, 8192, 12, (1, 4, 8), 2, 8, 64, (600, 457), 40, 6000)
MIDDLE = Shape(2048, 6144, 16, 8, 128, 32_000, 12, (1, 4, 8), 3, 16, 256, (1500, 1397), 128, 30_000)
STEPS, RATE = 20, 1e-3
PACKAGE = str(Path(torchspec.__file__).parent) + "/"


def new(place: Place, shape: Shape, method: str, compile: bool = False) -> Ours:
    torch.manual_seed(0)
    return Ours(shape, method, "adamw", None, place.device, compile and place.cuda)


def twenty_steps(place: Place, method: str) -> dict:
    """The same batch and the same anchors again and again: the loss must fall, and two runs must not differ in a bit."""
    shape = place.pick(SMALL, TINY)
    ours, again = new(place, shape, method), new(place, shape, method)
    losses, repeated = trained(ours), trained(again)
    same = all(torch.equal(a, b) for a, b in zip(ours.run.model.parameters(), again.run.model.parameters(), strict=True))
    return {
        "ok": losses[-1] < 0.9 * losses[0] and losses == repeated and same,
        "first_loss": losses[0], "last_loss": losses[-1], "same_losses": losses == repeated, "same_weights": same,
        **({"waits_of_a_step": waits(ours)} if place.cuda else {}),
    }  # fmt: skip


def trained(ours: Ours) -> list[float]:
    losses = []
    for _ in range(STEPS):
        ours.window = Window()
        ours.gradients(seed=0)
        losses.append(ours.window.metrics.means()["loss"])
        ours.window.update(ours.run, RATE)
    return losses


def waits(ours: Ours) -> dict[str, int]:
    """Lines of the package where the host waits for the GPU in one step -> times."""
    with synchronisations() as places:
        ours.step(seed=0)
    return dict(places.most_common())


@contextmanager
def synchronisations() -> Iterator[Counter]:
    """PyTorch warns at every wait; the warning is shown while the call that waits is still on the stack."""
    places = Counter()

    def note(message, *_place, **_file) -> None:
        if "called a synchronizing" in str(message):
            places[_innermost(traceback.extract_stack())] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _innermost(stack: traceback.StackSummary) -> str:
    """The last line of the package, and the function of PyTorch that it called where the wait is inside of one."""
    stack = [frame for frame in stack if frame.filename not in (__file__, warnings.__file__)]
    ours = max((i for i, frame in enumerate(stack) if frame.filename.startswith(PACKAGE)), default=0)
    through = f" in {stack[ours + 1].name}" if ours + 1 < len(stack) else ""
    return f"{stack[ours].filename.removeprefix(PACKAGE)}:{stack[ours].lineno}{through}"


def gradients(place: Place, ours: Ours) -> tuple[list[Tensor], dict[str, float]]:
    """Of the second of two calls, which compiles nothing: copies, and the peak memory."""
    for _ in range(2):
        ours.run.model.zero_grad()
        place.synchronize()
        place.forget_peak()
        ours.gradients(seed=0)
        peak = place.peak()
    copies = [parameter.grad.clone() for parameter in ours.run.model.parameters()]
    ours.run.model.zero_grad()
    return copies, peak


def compute_with(ours: Ours, **training) -> None:
    """The same weights, as `parallelise` wraps them under other settings."""
    settings = ours.run.config.training.model_copy(update=training)
    ours.run.compute = parallelise(ours.run.model, ours.run.world, settings, torch.bfloat16)


def recompute(place: Place, method: str) -> dict:
    """Activation checkpointing repeats the same kernels on the same numbers: equal bits are expected, less memory is the point."""
    ours = new(place, place.pick(MIDDLE, TINY), method)
    kept, kept_peak = gradients(place, ours)
    compute_with(ours, activation_checkpointing=True)
    again, peak = gradients(place, ours)
    errors = [relative(b, a) for a, b in zip(kept, again, strict=True)]
    return {"ok": within(errors, 1e-3), "worst": max(errors), "bitwise": max(errors) == 0.0, "kept": kept_peak, "recomputed": peak}


def compiled(place: Place, method: str) -> dict:
    """Fused kernels keep float32 where eager ones round to bfloat16 in between: gradients 0.011 apart on a CPU.

    EAGLE-3: three steps of a chain are three graphs.
    """
    shape = MIDDLE if method == "dflash" else replace(MIDDLE, block=4)
    ours = new(place, shape, method)
    eager, eager_peak = gradients(place, ours)
    compute_with(ours, compile=True)
    started = time.perf_counter()
    fused, peak = gradients(place, ours)
    seconds, errors = time.perf_counter() - started, [relative(b, a) for a, b in zip(eager, fused, strict=True)]
    return {"ok": within(errors, 3e-2), "worst": max(errors), "compile_seconds": seconds, "eager": eager_peak, "compiled": peak}
