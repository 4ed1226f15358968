"""The interval of tau covers tau as often as it says."""

import pytest
import torch

from torchspec.acceptance.interval import median_interval, tau_interval
from torchspec.acceptance.walk import Acceptance


def interval(answers: list[tuple[int, int]]) -> tuple[float, float] | None:
    """Of (tokens, steps) of each answer."""
    tokens, steps = (sum(column) for column in zip(*answers, strict=True)) if answers else (0, 0)
    moments = len(answers), sum(t * t for t, _ in answers), sum(t * s for t, s in answers), sum(s * s for _, s in answers)
    return tau_interval(tokens, steps, moments)


def test_equal_answers_leave_no_doubt_and_one_answer_leaves_all():
    assert interval([(12, 4), (24, 8), (6, 2)]) == (3.0, 3.0)
    assert interval([(12, 4)]) is None and interval([]) is None and interval([(0, 0), (0, 0)]) is None


def test_the_margin_is_that_of_a_mean_where_all_answers_take_the_same_number_of_steps():
    """Then tau is the mean of the answers' own; the margin is the textbook's."""
    tokens = torch.tensor([10.0, 14.0, 12.0, 19.0, 11.0])
    low, high = interval([(int(t), 5) for t in tokens])
    assert (low + high) / 2 == pytest.approx(float(tokens.mean()) / 5)
    assert (high - low) / 2 == pytest.approx(1.96 * float(tokens.std()) / 5**0.5 / 5)


def test_ranks_that_add_up_their_counts_have_the_interval_of_all_answers():
    """Oracle: one rank that tallies everything."""
    answers = [([2, 0, 1, 3], 9), ([0, 0], 3), ([3, 3, 3], 12), ([1], 2)]
    alone, ranks = Acceptance(4), [Acceptance(4), Acceptance(4)]
    for i, answer in enumerate(answers):
        alone.add_answer(*answer)
        ranks[i % 2].add_answer(*answer)
    together = ranks[0].from_counts(ranks[0].counts() + ranks[1].counts())
    assert together.to_json() == alone.to_json() and together.to_json()["tau_interval"] is not None


def test_nineteen_of_twenty_intervals_cover_tau():
    """2000 samples of 60 answers with a draft quality and a length of their own. A binomial count of 0.95 has a standard deviation of
    0.005 here; the second-order error of the normal approximation is about as large. An interval that took every step for an
    independent one would be several times too narrow.
    """
    g = torch.Generator().manual_seed(0)
    steps = torch.randint(5, 60, (2000, 60), generator=g)
    tokens = (steps * (1 + 4 * torch.rand(2000, 60, generator=g) ** 2)).round()
    tau = 1 + 4 / 3  # E[1 + 4 u^2]; rounding and independence of the steps leave it as it is
    rows = zip(tokens.int().tolist(), steps.tolist(), strict=True)
    covered = sum(low <= tau <= high for low, high in (interval(list(zip(*row, strict=True))) for row in rows))
    assert 0.93 < covered / 2000 < 0.965


def test_the_interval_of_a_median_is_that_of_its_order_statistics():
    """Of 401 values the 95% interval ends at ranks 201 -+ 1.96 sqrt(401) / 2 = 201 -+ 19.6; 2,000 draws find these within 3 ranks."""
    low, high = median_interval(range(1, 402))
    assert abs(low - 181.4) <= 3 and abs(high - 220.6) <= 3
    assert median_interval([1.5]) is None
