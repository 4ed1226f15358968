"""FeatureStream: the samples of one rank's plan, in plan order, N requests ahead. Its whole state is one integer: the next micro-batch.

plan:   7  3 | 1  9 | 4  0 | 8 ...          one rank's micro-batches
        ^ packed    ^ requested, not yet needed: N samples, the only bound on memory and the only backpressure
"""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import torch

from torchspec.capture.base import Capture
from torchspec.data.dataset import PromptDataset
from torchspec.data.plan import MicroBatch
from torchspec.meter import Meter
from torchspec.records import Batch, Features, Prompt


class Pending(Protocol):
    """Features that were asked for."""

    def result(self) -> Features: ...


class Source(Protocol):
    """Where a rank's features come from: this process, or workers elsewhere."""

    def request(self, prompt: Prompt) -> Pending: ...


class Captured:
    """A request that was answered at once."""

    def __init__(self, features: Features):
        self.features = features

    def result(self) -> Features:
        return self.features


class InProcess:
    """Capture in this process: a request is the forward itself."""

    def __init__(self, capture: Capture):
        self.capture = capture

    def request(self, prompt: Prompt) -> Captured:
        return Captured(self.capture.capture(prompt))


class FeatureStream:
    """Yields packed batches from micro-batch `position` on. Pull: nothing is captured that the plan does not ask for next."""

    def __init__(self, dataset: PromptDataset, source: Source, plan: list[MicroBatch], position: int, prefetch_depth: int):
        self.dataset, self.source, self.plan = dataset, source, plan
        self.position, self.prefetch_depth = position, prefetch_depth
        self.meter = Meter()

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[list[Pending]] = deque()
        for requested in range(self.position, len(self.plan)):
            with self.meter.waiting():
                ahead.append([self.source.request(self.dataset[index]) for index in self.plan[requested].indices])
            if sum(map(len, ahead)) > self.prefetch_depth:
                yield self._batch(ahead)
        while ahead:
            yield self._batch(ahead)

    def _batch(self, ahead: deque[list[Pending]]) -> Batch:
        with self.meter.waiting():
            samples = [pending.result() for pending in ahead.popleft()]
        self.meter.received(samples, queued=sum(map(len, ahead)))
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
