"""Sums and counts of a run's metrics: they add up over micro-batches, and are divided once, when read."""

import torch
from torch import Tensor


class MetricSums:
    """name -> (sum, count), each a tensor of any one shape; nothing leaves the device before `means`."""

    def __init__(self):
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, (total, count) in metrics.items():
            old = self.sums.get(name, (torch.zeros_like(total, dtype=torch.float64), torch.zeros_like(count, dtype=torch.float64)))
            self.sums[name] = (old[0] + total, old[1] + count)

    def means(self) -> dict[str, float | list[float]]:
        """Means as plain numbers, or lists for per-slot metrics; 0 where nothing was counted."""
        return {name: (total / count.clamp(min=1e-12)).tolist() for name, (total, count) in self.sums.items()}
