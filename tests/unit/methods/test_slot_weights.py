"""Weights of slots from the chance that each is right, whichever the loss: a label's probability or the overlap."""

import torch

from torchspec.methods.blocks import Slots
from torchspec.methods.weights import dpace_weights


def test_dpace_is_what_a_slot_adds_to_the_expected_acceptance():
    """The derivative of P_1 + ... + P_{B-1} by log s_k is w_k, by autograd. Slots that do not count stand around those that do."""
    mask = torch.tensor(
        [[[False, True, True, True], [False, True, False, False]], [[False, False, False, False], [False, True, True, False]]]
    )
    slots = Slots(torch.zeros(mask.shape, dtype=torch.int64), mask, mask.flatten().nonzero().flatten())
    chance = torch.tensor([0.9, 0.2, 1.0, 0.0, 0.5, 0.7])
    logs = (0.5 * chance + 0.5).log().requires_grad_()
    blocks = logs.split([3, 1, 2])
    sum(block.cumsum(0).exp().sum() for block in blocks).backward()
    torch.testing.assert_close(dpace_weights(slots, chance), logs.grad)
    planted = dpace_weights(slots, torch.exp(-chance))  # losses taken for chances
    assert not torch.allclose(planted, logs.grad)
