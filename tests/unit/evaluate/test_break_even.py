"""Steps are timed in turns, as often as there is time for, and what they cost becomes a prediction that a chart draws or refuses."""

from itertools import count
from types import SimpleNamespace

import pytest

from torchspec.evaluate import break_even
from torchspec.report.result_charts import break_even_charts
from torchspec.report.results import break_even_sentence

ROW = {
    "concurrency": 8, "verdict": "pays", "best_draft_tokens": 3, "best_draft_tokens_interval": [2, 5], "tau_at_best": 1.6,
    "tau_needed": 1.25, "tau_needed_interval": [1.2, 1.3], "speedup_at_best": 1.28, "speedup_interval": [1.23, 1.33],
    "curve": [1.1, 1.2, 1.28], "curve_intervals": [[1.0, 1.2], [1.1, 1.3], [1.23, 1.33]], "rounds": 12,
}  # fmt: skip


@pytest.fixture
def order(monkeypatch) -> list[int]:
    """Of the forwards' rows; a forward of n rows takes n seconds, and a draft a half."""
    asked = []

    def forwards(_pair, _concurrency):
        return lambda rows: asked.append(rows) or float(rows)

    monkeypatch.setattr(break_even, "forwards", forwards)
    monkeypatch.setattr(break_even, "drafts", lambda _pair, _concurrency: lambda: 0.5)
    return asked


PAIR = SimpleNamespace(method=SimpleNamespace(block_size=3))


def test_sizes_take_turns_and_every_other_round_goes_backwards(order):
    """The first round warms up."""
    rounds = break_even.timed_rounds(PAIR, 1)
    assert rounds == [[1.0, 2.5, 3.5]] * break_even.MOST_ROUNDS
    assert order == [1, 2, 3] + [1, 2, 3, 3, 2, 1] * (break_even.MOST_ROUNDS // 2)


def test_where_time_runs_out_there_are_the_fewest_rounds(order, monkeypatch):
    hours = count(0, 3600)
    monkeypatch.setattr(break_even.time, "perf_counter", lambda: next(hours))
    assert len(break_even.timed_rounds(PAIR, 1)) == break_even.LEAST_ROUNDS


def test_each_verdict_is_a_sentence():
    assert break_even_sentence(ROW) == (
        "3 draft tokens are the best number (between 2 and 5): predicted 1.28× [1.23, 1.33] at τ 1.60; break-even τ 1.25 [1.20, 1.30]"
    )
    pays_not = ROW | {"verdict": "pays not", "speedup_at_best": 0.9, "speedup_interval": [0.85, 0.95]}
    assert break_even_sentence(pays_not) == "no number of draft tokens pays here: at best 0.90× [0.85, 0.95]"
    unknown = ROW | {"verdict": "noise exceeds the effect", "speedup_interval": [0.9, 1.5]}
    assert break_even_sentence(unknown) == (
        "this cannot be told: the times of 12 rounds differ by more than drafts gain or cost, at best 1.28× [0.90, 1.50]"
    )


def test_a_curve_within_the_noise_is_not_drawn():
    refused = ROW | {"verdict": "noise exceeds the effect"}
    assert break_even_charts([refused]) == []
    assert len(break_even_charts([refused, ROW])) == 1
