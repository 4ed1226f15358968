"""What forwards cost, from times written out."""

import pytest

from torchspec.evaluate.break_even import costs, spread
from torchspec.report.result_charts import break_even_charts


def test_a_slow_moment_moves_no_median_and_more_rows_cost_no_less():
    assert costs([[1.0, 1.2, 0.9], [9.0, 9.0, 9.0], [1.0, 1.4, 0.8]]) == [1.0, 1.4, 1.4]


def test_spread_is_half_the_distance_of_the_quartiles():
    assert spread([2.0] * 5) == 0.0
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((4.5 - 1.5) / 2 / 3)


def test_a_curve_within_the_noise_is_not_drawn():
    row = {"concurrency": 8, "best_draft_tokens": 1, "speedup_at_best": 1.0, "tau_needed": 1.05, "noise": 0.1, "curve": [1.0]}
    assert break_even_charts([row | {"measurable": False}]) == []
    assert len(break_even_charts([row | {"measurable": False}, row | {"measurable": True}])) == 1
