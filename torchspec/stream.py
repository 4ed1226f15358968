"""FeatureStream: the samples of one rank's plan, in plan order, N requests ahead. Its whole state is one integer: the next micro-batch."""

import time
from collections import deque
from collections.abc import Iterator

import torch

from torchspec.capture.base import Capture
from torchspec.data.dataset import PromptDataset
from torchspec.data.plan import MicroBatch
from torchspec.records import Batch, Features


class FeatureStream:
    """Yields packed batches from micro-batch `position` on. Pull: nothing is captured that the plan does not ask for next."""

    def __init__(self, dataset: PromptDataset, capture: Capture, plan: list[MicroBatch], position: int, prefetch_depth: int):
        self.dataset, self.capture, self.plan = dataset, capture, plan
        self.position, self.prefetch_depth = position, prefetch_depth
        self.capture_seconds, self.captured_tokens = 0.0, 0

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[list[Features]] = deque()
        for requested in range(self.position, len(self.plan)):
            ahead.append([self._fetch(index) for index in self.plan[requested].indices])
            if sum(map(len, ahead)) > self.prefetch_depth:
                yield self._pack(ahead.popleft())
        while ahead:
            yield self._pack(ahead.popleft())

    def _fetch(self, index: int) -> Features:
        started = time.perf_counter()
        features = self.capture.capture(self.dataset[index])
        self.capture_seconds += time.perf_counter() - started
        self.captured_tokens += len(features.context)
        return features

    def _pack(self, samples: list[Features]) -> Batch:
        epoch = self.plan[self.position].epoch
        self.position += 1
        return pack(samples, epoch)


def pack(samples: list[Features], epoch: int) -> Batch:
    """Documents end to end, no padding; ids and masks move to where the features are."""
    device = samples[0].context.device
    return Batch(
        ids=torch.cat([s.prompt.ids for s in samples]).to(device),
        loss_mask=torch.cat([s.prompt.loss_mask for s in samples]).to(device),
        context=torch.cat([s.context for s in samples]),
        lengths=tuple(len(s.prompt.ids) for s in samples),
        indices=tuple(s.prompt.index for s in samples),
        epoch=epoch,
    ).check()
