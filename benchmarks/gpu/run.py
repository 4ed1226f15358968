"""The checks in their order, and what runs them one after the other."""

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from gpu import endtoend, kernels, machine, recipes, sharded, speed, steps
from gpu.place import Place

REPOSITORY = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Check:
    run: Callable[[Place], dict]  # its numbers, "ok" among them where there is a criterion
    seconds: float  # on an H100 that has compiled nothing yet
    needs_cuda: bool = False


METHODS = ("dflash", "eagle3")
CHECKS = {
    "environment": Check(machine.environment, 10),
    **{f"flex {name}": Check(partial(kernels.flex_case, heads=heads), 30) for name, heads in kernels.HEADS.items()},
    "flex inference": Check(kernels.flex_inference, 30),
    "losses cross-entropy": Check(kernels.cross_entropy, 5),
    **{f"losses {kind}": Check(partial(kernels.divergence, kind=kind), 5) for kind in ("kl", "tv", "lk")},
    **{f"steps {method}": Check(partial(steps.twenty_steps, method=method), 30) for method in METHODS},
    **{f"recompute {method}": Check(partial(steps.recompute, method=method), 20) for method in METHODS},
    "target": Check(endtoend.target, 25),
    **{
        f"{stage} {method}": Check(partial(run, method=method), seconds)
        for method in METHODS
        for stage, (run, seconds) in endtoend.STAGES.items()
    },
    "compile dflash": Check(partial(steps.compiled, method="dflash"), 50, needs_cuda=True),
    "head speed": Check(kernels.head_speed, 10),
    "speed dflash": Check(partial(speed.speed, method="dflash"), 45),
    "transfer": Check(machine.transfer, 10),
    "speed compiled dflash": Check(speed.compiled, 70, needs_cuda=True),
    **{f"memory {method}": Check(partial(recipes.memory, method=method), 30) for method in METHODS},
    "speed eagle3": Check(partial(speed.speed, method="eagle3"), 40),
    "fsdp2": Check(sharded.one_rank, 40),  # last of those that matter: it may hang in a network library
    "compile eagle3": Check(partial(steps.compiled, method="eagle3"), 90, needs_cuda=True),
}


def selected(only: str) -> list[str]:
    if not only:
        return list(CHECKS)
    return [name for name in CHECKS if any(name.startswith(wanted) for wanted in only.split(","))]


def run_checks(place: Place, names: list[str], budget: float) -> bool:
    """True if none failed."""
    started, good = time.perf_counter(), True
    for i, name in enumerate(names):
        left = budget - (time.perf_counter() - started)
        row = _row(place, CHECKS[name], left)
        place.report(name, row)
        good = good and row["ok"] is not False
        if place.cuda and "error" in row and _poisoned():
            _go_on_in_a_new_process(place, names[i + 1 :], budget - (time.perf_counter() - started))
    place.report("summary", {"ok": good, "seconds": time.perf_counter() - started})
    return good


def _row(place: Place, check: Check, left: float) -> dict:
    if check.needs_cuda and not place.cuda:
        return {"ok": None, "skipped": "needs CUDA"}
    if not place.small and check.seconds > left:
        return {"ok": None, "skipped": f"takes {check.seconds:.0f} s, {left:.0f} s are left"}
    torch.manual_seed(0)
    place.forget_peak()
    started = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # lines of the run itself
            numbers = check.run(place)
            place.synchronize()
        row = {"ok": None, **place.peak(), **numbers}
    except Exception as error:  # whatever it is: written down, and the next check goes on
        row = {"ok": False, "error": f"{type(error).__name__}: {error}"[:800], "where": _where(error)}
    row["seconds"] = time.perf_counter() - started
    _clean(place)
    return row


def _clean(place: Place) -> None:
    """The next check begins with an empty GPU and no compiled graph, as a run does."""
    torch._dynamo.reset()
    gc.collect()
    if place.cuda:
        with contextlib.suppress(RuntimeError):  # a broken context says so in `_poisoned`
            torch.cuda.empty_cache()


def _where(error: Exception) -> str:
    """The innermost line of this repository, or of whatever raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(REPOSITORY + "/") and "/.venv/" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{frame.filename.removeprefix(REPOSITORY + '/')}:{frame.lineno}"


def _poisoned() -> bool:
    """After an illegal access every later call of the process fails."""
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").add(1).item()
    except RuntimeError:
        return True
    return False


def _go_on_in_a_new_process(place: Place, names: list[str], budget: float) -> None:
    if not names:
        return
    arguments = ["--device", "cuda", "--budget", f"{budget:.0f}", "--only", ",".join(names), "--scratch", str(place.scratch)]
    arguments += ["--small"] * place.small + (["--out", str(place.out)] if place.out else [])
    os.execv(sys.executable, [sys.executable, str(Path(__file__).parents[1] / "gpu_check.py"), *arguments])
