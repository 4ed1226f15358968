"""How many draft tokens pay: what each number of them commits against what it costs, from rounds in which all of them were timed in turns.

With k draft tokens a step commits tau(k) = 1 + P(slot 1 accepted) + ... + P(slot k accepted) tokens and costs c(k) plain steps: the
speed-up is tau(k) / c(k), and c(k) is the tau that breaks even. Known before anything is timed: more tokens cost no less, and none cost 1.
So c is fitted as a rising curve that is never below 1, and no speed-up is above tau(k), whatever the machine did meanwhile.
"""

import random
import statistics
from collections.abc import Sequence
from itertools import accumulate

from torchspec.acceptance.interval import middle

PAYS, PAYS_NOT, UNKNOWN = "pays", "pays not", "noise exceeds the effect"
DRAWS = 1000


def draft_tokens_that_pay(slot_rates: Sequence[float], rounds: Sequence[Sequence[float]]) -> dict:
    """slot_rates: P(draft token k is accepted), k = 1..K, unconditional. rounds[r][k]: seconds of a step with k of them, k = 0..K.

    Intervals hold 95% of bootstrap draws of the rounds: they are of the machine's times, tau is taken as it is.
    """
    tau = list(accumulate(slot_rates, initial=1.0))[1:]
    draw = random.Random(0)
    costs, drawn = rising_costs(rounds), [rising_costs(draw.choices(rounds, k=len(rounds))) for _ in range(DRAWS)]
    curve, curves = speedups(tau, costs), [speedups(tau, one) for one in drawn]
    intervals = [middle(column) for column in zip(*curves, strict=True)]
    best = best_of(curve)
    return {
        "verdict": verdict(intervals, best),
        "best_draft_tokens": best + 1,
        "best_draft_tokens_interval": middle([best_of(one) + 1 for one in curves]),
        "tau_at_best": tau[best],
        "tau_needed": costs[best],
        "tau_needed_interval": middle([one[best] for one in drawn]),
        "speedup_at_best": curve[best],
        "speedup_interval": intervals[best],
        "curve": curve,
        "curve_intervals": intervals,
        "rounds": len(rounds),
    }


def rising_costs(rounds: Sequence[Sequence[float]]) -> list[float]:
    """[k] c(1)..c(K). Costs are those of one round: a moment that slows all of it changes none."""
    medians = (statistics.median(column) for column in zip(*([cost / one[0] for cost in one[1:]] for one in rounds), strict=True))
    return [max(1.0, cost) for cost in rising(medians)]


def rising(values: Sequence[float]) -> list[float]:
    """The nearest curve that never falls, by least squares: pool adjacent violators (Barlow et al., Statistical Inference under Order
    Restrictions, 1972).
    """
    pools: list[tuple[float, int]] = []  # sum and count of values that share their mean
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            before, more = pools.pop()
            total, count = total + before, count + more
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


def speedups(tau: Sequence[float], costs: Sequence[float]) -> list[float]:
    return [tokens / cost for tokens, cost in zip(tau, costs, strict=True)]


def best_of(curve: Sequence[float]) -> int:
    """Of equals the fewest."""
    return max(range(len(curve)), key=curve.__getitem__)


def verdict(intervals: Sequence[tuple[float, float]], best: int) -> str:
    if intervals[best][0] > 1:
        return PAYS
    return PAYS_NOT if all(high <= 1 for _, high in intervals) else UNKNOWN
