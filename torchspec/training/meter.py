"""Supply and demand of features: who waits for whom, and what split of the machines would balance them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torchspec.records import Features

TRAIN_BOUND, CAPTURE_BOUND = 0.03, 0.10  # shares of time spent waiting below and above which the verdict is clear


class Meter:
    """One rank's counts since they were last taken."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self.started, self.waited = time.perf_counter(), 0.0
        self.tokens, self.bytes, self.queued = 0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is time in which the trainer could not train."""
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def received(self, samples: list[Features], queued: int) -> None:
        self.tokens += sum(len(s.context) for s in samples)
        self.bytes += sum(s.context.nbytes for s in samples)
        self.queued = queued

    def take(self) -> dict[str, float]:
        """captured_tok_s: what this rank received; train_tok_s: what it would train if it never waited; wait: share of the time."""
        seconds = time.perf_counter() - self.started
        row = {
            "wait": self.waited / seconds,
            "captured_tok_s": self.tokens / seconds,
            "train_tok_s": self.tokens / max(seconds - self.waited, 1e-9),
            "bytes_per_s": self.bytes / seconds,
            "queued": self.queued,
        }
        self._reset()
        return row


def verdict(wait: float) -> str:
    """Who limits the run, from the share of their time that trainers wait."""
    if wait < TRAIN_BOUND:
        return "train-bound"
    return "capture-bound" if wait > CAPTURE_BOUND else "balanced"


def suggested_split(wait: float, workers: int, ranks: int) -> tuple[int, int]:
    """(capture workers, trainer ranks) of the same total that makes the fastest run.

    Trainers that wait a share w could train at 1/(1-w) of the rate at which they are fed: that gives both sides' rates per
    device, and a run goes at the slower side's. A trainer that never waits tells only that there are enough workers.
    """
    capture, train = (1 - wait) / workers, 1 / ranks
    total = workers + ranks
    best = max(range(1, total), key=lambda c: min(c * capture, (total - c) * train))
    return best, total - best
