"""How far a measured tau or speed-up may be from the one of the whole population of prompts."""

import random
import statistics
from collections.abc import Sequence

NORMAL_95 = 1.96
DRAWS = 2000


def tau_interval(tokens: float, steps: float, moments: Sequence[float]) -> tuple[float, float] | None:
    """95% confidence interval of tau from sums over answers, be the steps counted or expected. None below two answers.

    moments: how many answers, and sums of tokens², tokens * steps and steps². Ranks add up theirs.
    Tau is a ratio of two sums over answers, and tokens of one answer depend on one another: answers are what is independent.
    Delta method of a ratio (Cochran, Sampling Techniques, 1977, chapter 6): with d = tokens - tau * steps of each of n answers, the
    standard error is sqrt(n / (n - 1) * sum d^2) / sum steps. It is a normal approximation; below some 30 answers it is too narrow.
    """
    count, tokens_squared, products, steps_squared = moments
    if count < 2 or steps == 0:
        return None
    tau = tokens / steps
    squares = max(tokens_squared - 2 * tau * products + tau * tau * steps_squared, 0.0)
    margin = NORMAL_95 * (count / (count - 1) * squares) ** 0.5 / steps
    return tau - margin, tau + margin


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% interval of the median over prompts: percentiles of the bootstrap, by a fixed seed. None below two prompts."""
    if len(values) < 2:
        return None
    draw = random.Random(0)
    return middle([statistics.median(draw.choices(values, k=len(values))) for _ in range(DRAWS)])


def middle(draws: Sequence[float]) -> tuple[float, float]:
    """Where the middle 95% lie."""
    ordered = sorted(draws)
    return ordered[len(ordered) // 40], ordered[-len(ordered) // 40 - 1]
