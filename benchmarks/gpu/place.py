"""Where the checks run, where their lines go, and how they measure."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

GIB = 2**30


@dataclass(frozen=True)
class Place:
    device: torch.device
    small: bool
    out: Path | None  # file of the lines
    scratch: Path  # files that later checks read

    @classmethod
    def of(cls, device: str, small: bool, out: Path | None) -> "Place":
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        return cls(torch.device(device), small, out, Path(tempfile.mkdtemp(prefix="gpu-check-")))

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, full, small):
        return small if self.small else full

    def report(self, check: str, row: dict) -> None:
        """One line, on disk before anything else can go wrong."""
        line = json.dumps({"check": check, **_short(row)})
        print(line, file=sys.__stdout__, flush=True)
        if self.out is not None:
            with self.out.open("a") as lines:
                lines.write(line + "\n")

    def save(self, name: str, value: dict) -> None:
        """A small file beside the lines."""
        if self.out is not None:
            self.out.with_name(f"{self.out.stem}-{name}.json").write_text(json.dumps(_short(value), indent=1) + "\n")

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def normal(self, *size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(size, device=self.device).to(dtype)

    def seconds(self, work: Callable[[], object], times: int = 10, warm_up: int = 3) -> float:
        """Median of one call, by the GPU's own clock where there is one."""
        for _ in range(warm_up):
            work()
        return statistics.median(self._once(work) for _ in range(times))

    def _once(self, work: Callable[[], object]) -> float:
        if not self.cuda:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def pace(self, works: list[Callable[[], object]]) -> list[float]:
        """Seconds of each of several calls that follow one another without a pause."""
        if not self.cuda:
            return [self._once(work) for work in works]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(works) + 1)]
        marks[0].record()
        for work, mark in zip(works, marks[1:], strict=True):
            work()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in zip(marks, marks[1:], strict=False)]

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, float]:
        """GiB since `forget_peak`: of tensors, and of what the allocator holds for them."""
        if not self.cuda:
            return {}
        return {"peak_gib": torch.cuda.max_memory_allocated() / GIB, "reserved_gib": torch.cuda.max_memory_reserved() / GIB}


def relative(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected||"""
    expected = expected.detach().double()
    return float((got.detach().double() - expected).norm() / expected.norm())


def within(errors: Iterable[float], most: float) -> bool:
    """NaN never passes."""
    return all(error <= most for error in errors)


def _short(value):
    """Four digits of every float: the lines are read by people."""
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
