"""Sums and counts add up, whatever the order and the grouping; one division at the end."""

import pytest
import torch

from torchspec.training.metrics import MetricSums


def rows(count: int) -> list[dict]:
    g = torch.Generator().manual_seed(0)
    return [
        {
            "loss": (torch.rand((), generator=g) * 10, torch.randint(1, 9, (), generator=g)),
            "slots": (torch.randint(9, (3,), generator=g), torch.randint(9, (3,), generator=g)),
        }
        for _ in range(count)
    ]


def means(parts: list[dict]) -> dict:
    sums = MetricSums()
    for part in parts:
        sums.add(part)
    return sums.means()


def test_means_are_the_sum_of_sums_over_the_sum_of_counts():
    parts = rows(20)
    got = means(parts)
    assert got["loss"] == pytest.approx(sum(float(p["loss"][0]) for p in parts) / sum(int(p["loss"][1]) for p in parts))
    for slot in range(3):
        assert got["slots"][slot] == sum(int(p["slots"][0][slot]) for p in parts) / sum(int(p["slots"][1][slot]) for p in parts)


def test_the_order_of_micro_batches_changes_nothing():
    parts = rows(20)
    assert means(parts)["slots"] == means(parts[::-1])["slots"]
    assert means(parts)["loss"] == pytest.approx(means(parts[::-1])["loss"], rel=1e-12)


def test_small_numbers_are_not_lost_beside_large_ones():
    """float32 would drop a token's loss of 0.5 once 2^24 have been summed."""
    half = (torch.tensor(0.5), torch.tensor(1))
    large = (torch.tensor(2.0**25), torch.tensor(2**25 - 2))
    assert means([{"loss": large}, {"loss": half}, {"loss": half}])["loss"] == (2**25 + 1) / 2**25


def test_a_metric_without_counts_is_zero_and_one_may_come_late():
    got = means([{"a": (torch.zeros(2), torch.zeros(2, dtype=torch.int64))}, {"b": (torch.tensor(3.0), torch.tensor(2))}])
    assert got == {"a": [0.0, 0.0], "b": 1.5}


def test_adding_does_not_change_what_was_given():
    (part,) = rows(1)
    before = part["slots"][0].clone()
    sums = MetricSums()
    for _ in range(3):
        sums.add(part)
    assert torch.equal(part["slots"][0], before)
