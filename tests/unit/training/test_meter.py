"""Supply and demand: shares from a clock that the test moves, and splits that a rate model confirms."""

import time

import pytest
import torch

from torchspec.records import Features, Prompt
from torchspec.training.meter import Meter, suggested_split, verdict


def sample(tokens: int) -> Features:
    ids = torch.arange(tokens)
    return Features(Prompt(0, ids, ids > 0), torch.zeros(tokens, 6, dtype=torch.bfloat16), (1,), "test")


def test_shares_and_rates_are_those_of_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter()
    with meter.waiting():
        now[0] += 3
    now[0] += 1
    meter.received([sample(10), sample(30)], queued=2)
    row = meter.take()
    assert row == {"wait": 0.75, "captured_tok_s": 10.0, "train_tok_s": 40.0, "bytes_per_s": 40 * 12 / 4, "queued": 2}
    now[0] += 1
    assert meter.take()["captured_tok_s"] == 0  # taken means forgotten


@pytest.mark.parametrize(("wait", "said"), [(0.0, "train-bound"), (0.05, "balanced"), (0.5, "capture-bound")])
def test_the_verdict_follows_the_waiting_share(wait, said):
    assert verdict(wait) == said


@pytest.mark.parametrize(("workers", "ranks", "capture", "train"), [(1, 7, 2.0, 1.0), (1, 3, 1.0, 1.0), (2, 6, 1.0, 0.5), (4, 4, 0.2, 1.0)])
def test_the_suggested_split_is_the_fastest_of_all(workers, ranks, capture, train):
    """capture, train: samples per second of one device. A run goes at the slower side's rate."""
    supply, demand = workers * capture, ranks * train
    assert supply < demand, "only a trainer that waits measures the ratio"
    split = suggested_split(1 - supply / demand, workers, ranks)
    rate = {(c, workers + ranks - c): min(c * capture, (workers + ranks - c) * train) for c in range(1, workers + ranks)}
    assert rate[split] == max(rate.values()), (split, rate)
