"""How a draft starts, whatever the method."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig


def norm_scale(head: Tensor) -> float:
    """Start of the final norm with which logits have variance 1 or less: of a frozen head [V, H] by the length of its rows.

    The head is not ours to scale: with rows of length 3 a norm of 1 starts at a loss of 40 nats, and the first fifty steps go into taking
    it back.
    """
    row_length = torch.linalg.vector_norm(head, dim=1, dtype=torch.float32).square().mean().sqrt()
    return min(1.0, 1.0 / float(row_length))


def initialise(draft: nn.Module, config: PreTrainedConfig, generator: torch.Generator, scale: float) -> None:
    """Normal(0, 0.02) matrices; what a layer adds to the residual stream starts smaller by sqrt(2 D). scale: of the final norm."""
    depth = (2 * len(draft.layers)) ** -0.5
    for name, weight in draft.named_parameters():
        if weight.dim() == 2:
            own = depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(weight, std=config.initializer_range * own, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
        else:
            nn.init.constant_(weight, scale if name == "norm.weight" else 1.0)
