"""How much a slot of a block counts in the loss."""

import torch
from torch import Tensor

from torchspec.methods.blocks import Slots

DPACE_ALPHA = 0.5  # no slot's chance counts as less: a draft that is never right must learn all the same


def decay_weights(slots: Slots, gamma: float) -> Tensor:
    """exp(-(k-1)/gamma) of the slots k that count -> [r] (DFlash, arXiv 2602.06036)."""
    k = slots.rows % slots.mask.shape[-1]
    return torch.exp(-(k - 1) / gamma)


def dpace_weights(slots: Slots, chance: Tensor) -> Tensor:
    """Adaptive weights (D-PACE) of the slots that count, from the chance [r] that each is right, without gradient -> [r].

    q_k is that chance: exp(-cross-entropy), or, of a loss that knows the target's law and no label, the overlap, the chance of acceptance.
    s_k = (1 - alpha) q_k + alpha is a softened one, P_k = s_1 ... s_k the chance that all slots up to k are right. The expected number of
    accepted tokens is the sum of all P_j, and k has a part in those from k on:

        w_k = P_k + P_{k+1} + ... + P_{B-1}
    """
    softened = slots.spread((1 - DPACE_ALPHA) * chance + DPACE_ALPHA)
    reached = softened.where(slots.mask, 1.0).cumprod(-1) * slots.mask
    return slots.pick(reached.flip(-1).cumsum(-1).flip(-1).flatten())
