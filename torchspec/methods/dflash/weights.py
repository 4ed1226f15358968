"""How much a slot of a block counts in the loss."""

import torch
from torch import Tensor

DPACE_ALPHA = 0.5  # no slot's chance counts as less: a draft that is never right must learn all the same


def decay_weights(mask: Tensor, gamma: float) -> Tensor:
    """exp(-(k-1)/gamma) of the scored slots k of blocks, mask [N, A, B] -> [r] (DFlash, arXiv 2602.06036)."""
    slots = torch.arange(mask.shape[-1], device=mask.device)
    return torch.exp(-(slots - 1) / gamma).expand(mask.shape)[mask]


def dpace_weights(mask: Tensor, losses: Tensor) -> Tensor:
    """Adaptive weights (D-PACE) of the scored slots of blocks: mask [N, A, B], cross-entropies [r] without gradient -> [r].

    q_k = exp(-loss_k) is the chance that slot k is right, s_k = (1 - alpha) q_k + alpha a softened one, P_k = s_1 ... s_k the chance that
    all slots up to k are. The expected number of accepted tokens is the sum of all P_j, and k has a part in those from k on:

        w_k = P_k + P_{k+1} + ... + P_{B-1}
    """
    chance = torch.ones(mask.shape, device=mask.device)
    chance[mask] = (1 - DPACE_ALPHA) * torch.exp(-losses) + DPACE_ALPHA
    reached = chance.cumprod(-1) * mask
    return reached.flip(-1).cumsum(-1).flip(-1)[mask]
