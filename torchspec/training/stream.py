"""FeatureStream: the samples of one rank's plan, in plan order, N requests ahead. Its whole state is one integer: the next micro-batch.

plan:   7  3 | 1  9 | 4  0 | 8 ...          one rank's micro-batches
        ^ packed    ^ requested, not yet needed: N samples, the only bound on memory and the only backpressure
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from torchspec.capture.base import Capture
from torchspec.data.dataset import PromptDataset
from torchspec.data.plan import MicroBatch
from torchspec.records import Batch, Features, Prompt
from torchspec.training.meter import Meter


class Pending(Protocol):
    """Features of a micro-batch that were asked for."""

    def result(self) -> list[Features]: ...


class Source(Protocol):
    """Where a rank's features come from: this process, or workers elsewhere."""

    def request(self, prompts: list[Prompt]) -> Pending: ...


class Captured:
    """A request that was answered at once."""

    def __init__(self, features: list[Features]):
        self.features = features

    def result(self) -> list[Features]:
        return self.features


class InProcess:
    """Capture in this process: a request is the forward itself."""

    def __init__(self, capture: Capture):
        self.capture = capture

    def request(self, prompts: list[Prompt]) -> Captured:
        return Captured(self.capture.capture_batch(prompts))


class Beside:
    """Capture in a thread of this process, while the trainer computes: for a CPU, whose cores two small models use better than one."""

    def __init__(self, capture: Capture):
        self.capture, self.thread, self.cores = capture, ThreadPoolExecutor(1, "capture"), torch.get_num_threads()

    def request(self, prompts: list[Prompt]) -> Future[list[Features]]:
        return self.thread.submit(self.capture.capture_batch, prompts)


@contextmanager
def cores_shared(source: Source) -> Iterator[None]:
    """Where the target computes beside the draft, each has half of the cores, to the end: a resumed run rounds as one never stopped."""
    if isinstance(source, Beside):
        torch.set_num_threads(source.cores // 2)
    try:
        yield
    finally:
        if isinstance(source, Beside):
            torch.set_num_threads(source.cores)


@contextmanager
def all_cores(source: Source) -> Iterator[None]:
    """For a measurement within, which captures as well: what was asked for is captured first, then it computes as `torchspec eval` will,
    to the same tau.
    """
    if not isinstance(source, Beside):
        yield
        return
    source.thread.submit(int).result()
    torch.set_num_threads(source.cores)
    try:
        yield
    finally:
        torch.set_num_threads(source.cores // 2)


class FeatureStream:
    """Yields packed batches from micro-batch `position` on. Pull: nothing is captured that the plan does not ask for next."""

    def __init__(self, dataset: PromptDataset, source: Source, plan: list[MicroBatch], position: int, prefetch_depth: int):
        self.dataset, self.source, self.plan = dataset, source, plan
        self.position, self.prefetch_depth = position, prefetch_depth
        self.meter = Meter()

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[Pending] = deque()
        samples = 0  # of the micro-batches ahead
        for micro_batch in self.plan[self.position :]:
            with self.meter.waiting():
                ahead.append(self.source.request([self.dataset[index] for index in micro_batch.indices]))
            samples += len(micro_batch.indices)
            if samples > self.prefetch_depth:
                samples -= len(self.plan[self.position].indices)
                yield self._batch(ahead, samples)
        while ahead:
            samples -= len(self.plan[self.position].indices)
            yield self._batch(ahead, samples)

    def _batch(self, ahead: deque[Pending], still_ahead: int) -> Batch:
        with self.meter.waiting():
            samples = ahead.popleft().result()
        self.meter.received(samples, queued=still_ahead)
        epoch = self.plan[self.position].epoch
        self.position += 1
        return pack(samples, epoch)


def pack(samples: list[Features], epoch: int) -> Batch:
    """Documents end to end, no padding. Ids and masks stay on the host, where anchors are drawn and labels looked up."""
    return Batch(
        ids=torch.cat([s.prompt.ids for s in samples]),
        loss_mask=torch.cat([s.prompt.loss_mask for s in samples]),
        context=torch.cat([s.context for s in samples]),
        lengths=tuple(len(s.prompt.ids) for s in samples),
        indices=tuple(s.prompt.index for s in samples),
        epoch=epoch,
    ).check()
