"""How many draft tokens pay: against costs written out, and under planted load, which may cost certainty and never makes the impossible."""

import random
from itertools import accumulate

import pytest

from torchspec.acceptance.draft_tokens import PAYS, PAYS_NOT, UNKNOWN, draft_tokens_that_pay, rising, rising_costs

RATES = [0.36, 0.12, 0.04, 0.01, 0.0]
TAU = list(accumulate(RATES, initial=1.0))[1:]
CHEAP, EVEN, DEAR = [1.05, 1.1, 1.12, 1.15, 1.2], TAU, [1.6, 1.8, 2.0, 2.2, 2.4]  # of a step with 1..5 draft tokens, in plain steps


def quiet(draw: random.Random) -> float:
    """A machine that does nothing else, now and then a slow moment."""
    return draw.lognormvariate(0, 0.03) * (2 if draw.random() < 0.05 else 1)


def loaded(draw: random.Random) -> float:
    """Every other forward meets another process, and takes up to twelve times as long."""
    return draw.uniform(1, 12) if draw.random() < 0.5 else 1.0


def rounds(costs: list[float], noise, seed: int, count: int = 12) -> list[list[float]]:
    draw = random.Random(seed)
    return [[0.03 * cost * noise(draw) for cost in [1.0, *costs]] for _ in range(count)]


@pytest.mark.parametrize("costs", [CHEAP, DEAR])
def test_without_noise_the_curve_is_tau_over_cost(costs):
    row = draft_tokens_that_pay(RATES, rounds(costs, lambda draw: 1.0, 0))
    assert row["curve"] == pytest.approx([tau / cost for tau, cost in zip(TAU, costs, strict=True)])
    assert row["verdict"] == (PAYS if costs is CHEAP else PAYS_NOT)
    best = row["best_draft_tokens"]
    assert row["speedup_at_best"] == max(row["curve"]) == row["curve"][best - 1]
    assert row["tau_needed"] == pytest.approx(costs[best - 1]) and row["tau_at_best"] == TAU[best - 1]
    assert row["speedup_interval"] == pytest.approx([row["speedup_at_best"]] * 2) and row["best_draft_tokens_interval"] == (best, best)


@pytest.mark.parametrize("noise", [quiet, loaded])
@pytest.mark.parametrize("costs", [CHEAP, EVEN, DEAR])
def test_whatever_the_machine_does_nothing_impossible_is_said(noise, costs):
    """A report under load said 9.64x at a needed tau of 0.14: one slow plain forward beside quick verifications."""
    for seed in range(5):
        row = draft_tokens_that_pay(RATES, rounds(costs, noise, seed, count=4))
        everything = [*row["curve_intervals"], row["speedup_interval"]]
        assert row["tau_needed_interval"][0] >= 1 and row["tau_needed"] >= 1
        assert all(high <= tau for (_, high), tau in zip(row["curve_intervals"], TAU, strict=True))
        assert all(low <= high for low, high in everything)
        assert row["speedup_at_best"] <= row["tau_at_best"]


def said(costs: list[float], noise) -> list[str]:
    return [draft_tokens_that_pay(RATES, rounds(costs, noise, seed))["verdict"] for seed in range(10)]


def test_where_noise_exceeds_the_effect_the_answer_is_refused():
    assert said(EVEN, loaded).count(UNKNOWN) >= 9 and said(CHEAP, loaded).count(UNKNOWN) >= 8
    assert said(EVEN, quiet).count(UNKNOWN) >= 9  # drafts that gain as much as they cost


def test_a_quiet_machine_gets_the_same_answer_each_time():
    assert said(CHEAP, quiet).count(PAYS) >= 9 and said(DEAR, quiet).count(PAYS_NOT) >= 9
    rows = [draft_tokens_that_pay(RATES, rounds(CHEAP, quiet, seed)) for seed in range(10)]
    assert all(abs(row["speedup_at_best"] - max(t / c for t, c in zip(TAU, CHEAP, strict=True))) < 0.06 for row in rows)
    assert all(row["best_draft_tokens_interval"][0] <= 2 <= row["best_draft_tokens_interval"][1] for row in rows)


def test_a_draft_that_accepts_nothing_pays_nowhere():
    assert draft_tokens_that_pay([0.0, 0.0], rounds([1.01, 1.02], quiet, 0))["verdict"] == PAYS_NOT


def test_costs_are_of_their_own_round_rise_and_are_never_below_one():
    """The second round is ten times slower throughout; the third has a slow plain forward. Medians 1.2 and 0.9 are pooled."""
    assert rising_costs([[1.0, 1.2, 0.9], [10.0, 12.0, 14.0], [3.0, 1.2, 1.4]]) == pytest.approx([1.05, 1.05])
    assert rising_costs([[1.0, 0.2]]) == [1.0]


def test_the_nearest_rising_curve_by_hand():
    assert rising([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert rising([3.0, 1.0, 2.0, 5.0, 4.0]) == [2.0, 2.0, 2.0, 4.5, 4.5]
