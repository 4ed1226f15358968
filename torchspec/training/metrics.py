"""Sums and counts of a run's metrics: they add up over micro-batches, and are divided once, when read."""

import torch
from torch import Tensor

from torchspec.training.distributed import World


class MetricSums:
    """name -> (sum, count), each a tensor of any one shape; nothing leaves the device before `means`."""

    def __init__(self):
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, metrics: dict[str, tuple[Tensor, Tensor]]) -> None:
        for name, (total, count) in metrics.items():
            old = self.sums.get(name, (torch.zeros_like(total, dtype=torch.float64), torch.zeros_like(count, dtype=torch.float64)))
            self.sums[name] = (old[0] + total, old[1] + count)

    def all_ranks(self, world: World) -> "MetricSums":
        """The sums over all ranks, in one reduction. A metric is counted on every rank or on none, so their names agree."""
        total = MetricSums()
        if not self.sums:
            return total
        parts = [part for name in sorted(self.sums) for part in self.sums[name]]
        reduced = world.sum(torch.cat([part.flatten() for part in parts])).split([part.numel() for part in parts])
        shaped = [value.view(part.shape) for value, part in zip(reduced, parts, strict=True)]
        total.sums = dict(zip(sorted(self.sums), zip(shaped[::2], shaped[1::2], strict=True), strict=True))
        return total

    def means(self) -> dict[str, float | list[float]]:
        """Means as plain numbers, or lists for per-slot metrics; 0 where nothing was counted."""
        return {name: (total / count.clamp(min=1e-12)).tolist() for name, (total, count) in self.sums.items()}
