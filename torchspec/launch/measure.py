"""`torchspec plan`: a minute of measuring on this machine -> how long the run will take, what it costs, and how devices are best split.

Three rates are measured with the run's own data, target, draft and optimizer: capture, a micro-batch of training, the evaluation of a
held-out sample. The rest is counting: the plan says which micro-batches come, the cache which of their samples are captured again.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count, cycle

import torch

from torchspec.capture.cache import CachedCapture
from torchspec.config import RunConfig
from torchspec.console import console, print_rows
from torchspec.decode.offline import evaluate_offline
from torchspec.launch.plan import GIB, print_plan
from torchspec.launch.servers import supply
from torchspec.nn.device import resolve_device
from torchspec.training.build import Run, build, cache_bytes
from torchspec.training.distributed import World
from torchspec.training.loop import Window
from torchspec.training.stream import Beside, all_cores, cores_shared

CAPTURE_SECONDS, TRAIN_SECONDS, EVALUATE_SECONDS = 15.0, 30.0, 10.0
CURVE = ((0.07, 0.09), (0.14, 0.38), (0.54, 0.72), (0.95, 1.0))  # share of the steps, share of the gain: GSM8K on two cores
KEPT = 16  # micro-batches that are trained on while measuring; their features, 5 GiB with Qwen3-8B, wait on the host
WARM_UP = 2  # calls that are not counted: memory is allocated, kernels are chosen


@dataclass(frozen=True)
class Rates:
    """Of one device."""

    capture: float  # seconds of a token
    train: float  # seconds of a micro-batch, its share of the optimizer step included
    evaluate: float  # seconds of a held-out sample, its capture included


@dataclass(frozen=True)
class Prediction:
    """Seconds that devices are busy, and that the run takes."""

    capture: float
    train: float
    evaluate: float
    run: float


def measure_plan(config: RunConfig, price: float | None) -> Prediction:
    """Prints the plan, measures, and prints what follows. price: of one device for an hour, in any currency."""
    print_plan(config)
    here = alone(config)
    run = build(here, World(0, 1, resolve_device(config.model.device)), supply(here))
    console.print("measuring for a minute ...")
    rates = measure(run)
    predicted = predict(config, run, rates)
    _print(config, run, rates, predicted, price)
    return predicted


def alone(config: RunConfig) -> RunConfig:
    """The same optimizer steps in this process: one rank that captures for itself, so an engine has no device of its own. Servers that run
    already are asked as they are."""
    training, inference = config.training, config.inference
    per_step = training.draft_accumulation_steps * training.num_ranks
    here = {"num_workers": 0}
    if inference.num_workers:  # what was meant for devices of their own, and for the way between them
        here |= {"memory_fraction": None, "transfer_dtype": inference.transfer_dtype if inference.replay_dir else "model"}
    return config.model_copy(
        update={
            "inference": inference.model_copy(update=here),
            "training": training.model_copy(update={"num_ranks": 1, "draft_accumulation_steps": per_step}),
        }
    )


def measure(run: Run) -> Rates:
    device, kept, tokens = run.world.device, [], 0
    captured = chain.from_iterable(run.stream(0) for _ in count())

    def capture() -> None:
        nonlocal tokens
        batch = next(captured)
        tokens += len(batch.ids)
        if len(kept) < KEPT:
            kept.append(batch.to(torch.device("cpu")))

    window, batches = Window(), cycle(kept)

    def train() -> None:
        for _ in range(run.config.training.draft_accumulation_steps):
            window.backward(run, next(batches).to(device), run.config.training.seed, progress=0.0)
        window.update(run, run.config.training.min_lr)

    with cores_shared(run.source):
        next(captured)  # not counted: from here on as many samples are under way as in the run
        capture_seconds, _ = timed(capture, CAPTURE_SECONDS, device)
        for _ in range(WARM_UP):
            train()
        train_seconds, steps = timed(train, TRAIN_SECONDS, device)
        with all_cores(run.source):
            held_out_seconds = _evaluation(run)
    per_micro_batch = train_seconds / steps / run.config.training.draft_accumulation_steps
    return Rates(capture_seconds / tokens, per_micro_batch, held_out_seconds)


def _evaluation(run: Run) -> float:
    """Seconds of a held-out sample, its capture included."""
    if run.held_out is None:
        return 0.0
    capture = CachedCapture(run.held_out_capture.inner, 0, run.world.device)  # every call captures anew
    draft, prompts = run.whole_draft(), [run.held_out[i] for i in range(min(4, len(run.held_out)))]
    with torch.inference_mode():
        seconds, calls = timed(lambda: evaluate_offline(run.method, draft, capture, prompts), EVALUATE_SECONDS, run.world.device)
    return seconds / calls / len(prompts)


def timed(action: Callable[[], None], budget: float, device: torch.device) -> tuple[float, int]:
    """Calls `action` until the budget is spent: (seconds, calls)."""
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < budget:
        action()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - started, calls


def predict(config: RunConfig, run: Run, rates: Rates) -> Prediction:
    """run: as one process would do it, so its plan is that of all ranks."""
    ranks, inference, evaluation = config.training.num_ranks, config.inference, config.evaluation
    capture, train = captured_tokens(run) * rates.capture, len(run.plan) * rates.train
    evaluations = len({*range(evaluation.interval, run.total_steps, evaluation.interval), run.total_steps})
    samples = 0 if run.held_out is None else min(len(run.held_out), evaluation.max_samples)
    evaluate = evaluations * samples * rates.evaluate
    if not inference.in_trainer:  # all servers were measured together, a worker alone
        together = max(capture / max(1, inference.num_workers), train / ranks)
    elif isinstance(run.source, Beside):
        together = max(capture, train) / ranks
    else:
        together = (capture + train) / ranks
    return Prediction(capture, train, evaluate, together + evaluate / ranks)


def captured_tokens(run: Run) -> int:
    """Tokens of all samples of the plan, less those whose features an earlier epoch has left in memory: first come, first kept."""
    limit, _ = cache_bytes(run.config)
    per_token = len(run.method.layer_ids) * run.method.target.config.hidden_size * run.method.target.head.itemsize
    kept, size, total = set(), 0, 0
    for index in (index for micro_batch in run.plan for index in micro_batch.indices):
        if index in kept:
            continue
        length = int(run.dataset.lengths[index])
        total += length
        if size + length * per_token <= limit:
            kept.add(index)
            size += length * per_token
    return total


def best_split(capture: float, train: float, devices: int) -> tuple[int, float]:
    """Capture workers among so many devices that make the fastest run, and its seconds; the rest train."""
    return min(((c, max(capture / c, train / (devices - c))) for c in range(1, devices)), key=lambda split: split[1])


def _print(config: RunConfig, run: Run, rates: Rates, predicted: Prediction, price: float | None) -> None:
    devices = config.training.num_ranks + config.inference.num_workers * config.inference.gpus_per_worker
    beside = " beside the servers" if config.inference.servers else ""
    rows = {
        "measured": f"capture {1 / rates.capture:,.0f} tok/s, a micro-batch of training {1000 * rates.train:,.0f} ms, "
        f"a held-out sample {1000 * rates.evaluate:,.0f} ms; {_peak(run.world.device)}",
        "predicted": f"{_time(predicted.run)} on {devices} device(s){beside}: {_time(predicted.capture)} of capture, "
        f"{_time(predicted.train)} of training, {_time(predicted.evaluate)} of evaluation",
        "epoch": f"{_time(predicted.run / config.training.num_epochs)}, {devices * predicted.run / 3600 / config.training.num_epochs:.2f} "
        "device-hours",
        "split": _supply(config, predicted),
        "τ": "in recorded runs (benchmarks/RESULTS.md) "
        + ", ".join(f"{gain:.0%} of the final gain τ - 1 after {share:.0%} of the steps" for share, gain in CURVE),
    }
    if price is not None:
        rows["cost"] = f"{price * devices * predicted.run / 3600:,.2f} at {price:g} per device and hour"
    print_rows(rows)


def _supply(config: RunConfig, predicted: Prediction) -> str:
    """How devices are best split; what servers run on is not ours to split."""
    if config.inference.servers:
        return f"{len(config.inference.servers)} server(s) capture as fast as {predicted.train / predicted.capture:.1f} ranks train"
    return "; ".join(_split(predicted, devices) for devices in (2, 4, 8))


def _split(predicted: Prediction, devices: int) -> str:
    workers, seconds = best_split(predicted.capture, predicted.train, devices)
    return f"{devices} devices: {workers} capture + {devices - workers} training, {_time(seconds)}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak memory {torch.cuda.max_memory_allocated(device) / GIB:.1f} GiB of the device"
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.1f} GiB of the process"
