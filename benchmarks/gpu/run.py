"""The checks in their groups, and what runs them.

on a GPU    BESIDE: a process per group, all at once, since most of their time is compiling    then ALONE: nothing disturbs the clock
elsewhere   one after the other
"""

import contextlib
import gc
import subprocess
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

REPOSITORY = str(Path(__file__).parents[2]) + "/"
MOST_BESIDE = 240  # seconds for the groups that run at once
FAILED = 3  # exit code of a run with a failed check; Python's own is 1


@dataclass(frozen=True)
class Check:
    run: Callable[[Place], dict]  # its numbers, "ok" among them where there is a criterion
    seconds: float = 0.0  # on an H100 that has compiled nothing yet: what must be left for it to start
    needs_cuda: bool = False


def for_methods(name: str, run: Callable, **options) -> dict[str, Check]:
    return {f"{name} {method}": Check(partial(run, method=method), **options) for method in ("dflash", "eagle3")}


def whole_way(method: str) -> dict[str, Check]:
    return {f"{stage} {method}": Check(partial(run, method=method)) for stage, run in endtoend.STAGES.items()}


BESIDE: dict[str, dict[str, Check]] = {
    "flex": {
        **{f"flex {name}": Check(partial(kernels.flex_case, heads=heads)) for name, heads in kernels.HEADS.items()},
        "flex inference": Check(kernels.flex_inference),
    },
    "losses": {
        "losses cross-entropy": Check(kernels.cross_entropy),
        **{f"losses {kind}": Check(partial(kernels.divergence, kind=kind)) for kind in ("kl", "tv", "lk")},
    },
    "steps": {**for_methods("steps", steps.twenty_steps), **for_methods("recompute", steps.recompute)},
    "compile": for_methods("compile", steps.compiled, needs_cuda=True),
    "dflash": whole_way("dflash"),
    "eagle3": whole_way("eagle3"),
    "fsdp2": {"fsdp2": Check(sharded.one_rank)},
}
FIRST = {"environment": Check(machine.environment, 10)}
ALONE = {
    "speed compiled dflash": Check(speed.compiled, 90, needs_cuda=True),
    "transfer": Check(machine.transfer, 10),
    "growing lengths": Check(kernels.growing, 10),
    **for_methods("memory", recipes.memory, seconds=40),
    "speed eagle3": Check(partial(speed.speed, method="eagle3"), 40),
    "head speed": Check(kernels.head_speed, 10),
    "speed dflash": Check(partial(speed.speed, method="dflash"), 40),
}
CHECKS = {name: check for group in (FIRST, *BESIDE.values(), ALONE) for name, check in group.items()}


def run_checks(place: Place, only: str, budget: float) -> bool:
    """True if none failed."""
    started, wanted = time.perf_counter(), only.split(",")
    if only or not place.cuda:
        good = _one_by_one(place, [name for name in CHECKS if any(name.startswith(start) for start in wanted)], budget)
    else:
        good = _one_by_one(place, list(FIRST), budget)
        good = _beside(place, min(budget, MOST_BESIDE)) and good
        good = _one_by_one(place, list(ALONE), budget - (time.perf_counter() - started)) and good
        place.report("everything", {"ok": good, "seconds": time.perf_counter() - started})
    return good


def _beside(place: Place, budget: float) -> bool:
    """A group that crashes, hangs or spoils its CUDA context takes no other along."""
    until, groups = time.perf_counter() + budget, {name: _process(place, name, checks) for name, checks in BESIDE.items()}
    ends = {name: _end(process, until) for name, process in groups.items()}
    for name, problem in ends.items():
        if problem is not None:
            place.report(f"group {name}", {"ok": False, "error": f"{problem}: {_log(place, name).read_text()[-600:]}"})
    return all(problem is None for problem in ends.values()) and all(process.returncode == 0 for process in groups.values())


def _end(process: subprocess.Popen, until: float) -> str | None:
    """Waits -> what became of a group that did not get to its end; a failed check has said so itself."""
    try:
        code = process.wait(max(0.0, until - time.perf_counter()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "stopped, the time was up"
    return None if code in (0, FAILED) else f"exit code {code}"


def _process(place: Place, name: str, checks: dict[str, Check]) -> subprocess.Popen:
    entry = REPOSITORY + "benchmarks/gpu_check.py"
    arguments = ["--device", place.device.type, "--only", ",".join(checks)] + ["--small"] * place.small
    arguments += ["--out", str(place.out)] if place.out is not None else []
    return subprocess.Popen([sys.executable, entry, *arguments], stderr=_log(place, name).open("w"))


def _log(place: Place, group: str) -> Path:
    return place.scratch / f"{group}.log"


def _one_by_one(place: Place, names: list[str], budget: float) -> bool:
    started, good = time.perf_counter(), True
    for name in names:
        row = _row(place, CHECKS[name], budget - (time.perf_counter() - started))
        place.report(name, row)
        good = good and row["ok"] is not False
    return good


def _row(place: Place, check: Check, left: float) -> dict:
    if check.needs_cuda and not place.cuda:
        return {"ok": None, "skipped": "needs CUDA"}
    if check.seconds > left:
        return {"ok": None, "skipped": f"takes {check.seconds:.0f} s, {left:.0f} s are left"}
    torch.manual_seed(0)
    started = time.perf_counter()
    try:
        place.forget_peak()
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
        with contextlib.suppress(RuntimeError):  # of a spoilt context; the next check will say so
            torch.cuda.empty_cache()


def _where(error: Exception) -> str:
    """The innermost line of this repository, or of whatever raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith((REPOSITORY + "torchspec", REPOSITORY + "benchmarks"))]
    frame = (ours or frames)[-1]
    return f"{frame.filename.removeprefix(REPOSITORY)}:{frame.lineno}"
