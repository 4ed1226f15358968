"""What a step of Qwen3-8B's draft costs, where the time goes, and how much of it the GPU does nothing."""

import statistics
import time
from dataclasses import asdict, replace

from gpu.place import Place
from gpu.steps import TINY, new
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from train_step import SHAPES, Ours, flops, matmul_ceiling, median_seconds, parts, random_batch, seconds

WARM_UP, STEPS, KERNELS = 3, 10, 25


def speed(place: Place, method: str) -> dict:
    ours = new(place, place.pick(SHAPES["qwen3-8b-256"], TINY), method)
    numbers = timed(place, ours)
    place.report(f"speed {method}, step alone", {"ok": None, **numbers})  # kept, whatever the rest does
    counted, ceiling = flops(ours), matmul_ceiling(place.device)
    breakdown = {name: 1000 * median_seconds(work, place.device, 5) for name, work in parts(ours).items()}
    numbers |= {
        "flops": counted, "ceiling_tflops": ceiling / 1e12, "mfu": 1000 * sum(counted.values()) / numbers["ms"] / ceiling,
        "breakdown_ms": breakdown | {"optimizer": 1000 * _optimizer(place, ours)},
    }  # fmt: skip
    return numbers | (profiled(place, ours, method) if place.cuda else {})


def compiled(place: Place) -> dict:
    ours = new(place, SHAPES["qwen3-8b-256"], "dflash", compile=True)
    numbers = timed(place, ours) | profiled(place, ours, "dflash-compiled")
    place.report("speed compiled dflash, one shape", {"ok": None, **numbers})
    return numbers | {"mixed_lengths": mixed(place, ours)}


def mixed(place: Place, ours: Ours) -> dict:
    """Documents of changing lengths, as in a run: lengths are symbols then."""
    shapes = [replace(ours.shape, lengths=lengths) for lengths in ((768, 768), (700, 836), (641, 777), (900, 501))]
    batches = [random_batch(shape, ours.batch.context.shape[1], place.device) for shape in shapes]

    def step(seed: int) -> None:
        ours.batch = batches[seed % len(batches)]
        ours.step(seed)

    started = time.perf_counter()
    for seed in range(2 * len(batches)):
        step(seed)
    place.synchronize()
    warm = time.perf_counter() - started
    times = place.pace([lambda seed=seed: step(seed) for seed in range(3 * len(batches))])
    return {"ms": 1000 * statistics.median(times), "all_ms": [1000 * value for value in times], "first_eight_steps_seconds": warm}


def timed(place: Place, ours: Ours) -> dict:
    """Steps with new anchors each, one after the other as in a run: the host is not made to wait between them."""
    first = seconds(lambda: ours.step(0), place.device)  # those of compiling
    for seed in range(1, WARM_UP):
        ours.step(seed)
    place.forget_peak()
    times = place.pace([lambda seed=seed: ours.step(seed) for seed in range(WARM_UP, WARM_UP + STEPS)])
    micro = statistics.median(place.pace([lambda seed=seed: ours.gradients(seed) for seed in range(STEPS)]))
    ours.update()
    middle, documents = statistics.median(times), len(ours.shape.lengths)
    return {
        "ms": 1000 * middle, "all_ms": [1000 * value for value in times], "micro_batch_ms": 1000 * micro,
        "ms_per_sample": 1000 * middle / documents, "ms_per_sample_of_four_micro_batches": 1000 * (3 * micro + middle) / 4 / documents,
        "tokens_per_second": sum(ours.shape.lengths) / middle, "parameters": sum(p.numel() for p in ours.run.model.parameters()),
        "first_step_seconds": first, **place.peak(),
    }  # fmt: skip


def _optimizer(place: Place, ours: Ours) -> float:
    times = []
    for _ in range(5):
        ours.gradients(0)
        times.append(seconds(ours.update, place.device))
    return statistics.median(times)


def profiled(place: Place, ours: Ours, name: str) -> dict:
    """One step under the profiler: kernels by their time, and the share of the step in which none runs."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as measured:
        place.synchronize()
        started = time.perf_counter()
        ours.step(99)
        place.synchronize()
        whole = time.perf_counter() - started
    kernels = [e for e in measured.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    busy = _covered(sorted((e.time_range.start, e.time_range.end) for e in kernels)) / 1e6
    rows: dict[str, list[float]] = {}
    for event in kernels:
        rows.setdefault(event.name[:90], []).append(event.time_range.elapsed_us() / 1000)
    slowest = sorted(rows, key=lambda kernel: -sum(rows[kernel]))[:KERNELS]
    table = [{"kernel": kernel, "ms": sum(rows[kernel]), "calls": len(rows[kernel])} for kernel in slowest]
    place.save(f"profile-{name}", {"shape": asdict(ours.shape), "step_ms": 1000 * whole, "busy_ms": 1000 * busy, "kernels": table})
    return {"idle_share": 1 - busy / whole, "profiled_ms": 1000 * whole, "kernel_launches": len(kernels), "slowest": table[:6]}


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union: copies run beside kernels."""
    total, reached = 0.0, float("-inf")
    for start, end in intervals:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
