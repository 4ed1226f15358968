"""The calibration error of a confidence by hand, and temperatures that give back the chances a confidence was made from."""

import pytest
import torch

from torchspec.acceptance.calibration import GRID, errors, fit, survival, tally


def test_errors_are_those_by_hand():
    """Slot 1: steps at 0.62 and 0.68 share a bin, one of two survives: |0.65 - 0.5|; the step at 0.95 does not: 0.95. Mean over 3."""
    survives = torch.tensor([[0.62, 0.10], [0.68, 0.61], [0.95, 0.90]], dtype=torch.float64)
    right = torch.tensor([[True, False], [False, False], [False, False]])
    there = torch.tensor([[True, True], [True, False], [True, False]])
    counts = tally(survives, right, there)
    assert counts[..., 0].sum(1).tolist() == [3, 1]
    assert errors(counts) == pytest.approx([(2 * 0.15 + 0.95) / 3, 0.10])
    assert errors(2 * counts) == pytest.approx(errors(counts)) and errors(tally(survives, right, there & False)) == [0, 0]
    one, two = tally(survives[:1], right[:1], there[:1]), tally(survives[1:], right[1:], there[1:])
    assert torch.equal(one + two, counts)


@pytest.fixture(scope="module")
def steps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and what became of 20,000 steps of three slots, each accepted with the chance that its logit says."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 3, generator=g)
    accepted = torch.rand(logits.shape, generator=g) < logits.sigmoid()
    return logits, accepted.cumprod(1).bool(), torch.ones_like(accepted)


def test_temperatures_give_back_how_much_too_sure_each_slot_was(steps):
    """The grid has eight steps between a number and twice it; what was drawn decides to about one of them."""
    logits, right, there = steps
    sure = torch.tensor([4.0, 1.0, 0.5])
    found = fit(logits * sure, right, there)
    assert [GRID.index(a) - GRID.index(float(b)) for a, b in zip(found, sure, strict=True)] == pytest.approx([0, 0, 0], abs=2)
    before, after = (errors(tally(survival(logits * sure, t), right, there)) for t in ([1.0] * 3, found))
    assert max(after) < 0.015 < min(before[0], before[2])
    planted = errors(tally(survival(logits * sure, found[::-1]), right, there))  # in the order of the last slot first
    assert max(planted) > 0.05


def test_nothing_to_learn_from_changes_nothing(steps):
    logits, right, there = steps
    assert fit(logits[:5], right[:5], there[:5] & False) == [1.0] * 3
