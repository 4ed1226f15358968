"""What stands in for kernels that exist on a GPU only; every such kernel of torchspec has its line in `kernels_replaced`."""

from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from torchspec.nn import attention, losses


def kernels_replaced(monkeypatch, flex, loss_kernels: ModuleType | SimpleNamespace) -> None:
    monkeypatch.setattr(attention, "_compiled_flex", flex)
    monkeypatch.setattr(losses, "_arithmetic", lambda head: loss_kernels)


LOSSES_IN_PLACE = SimpleNamespace(losses_=lambda *tensors: None)  # the kernels allocate nothing


def plain_flex(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, **options) -> Tensor:
    """The same values, the rule evaluated for every pair of rows. q [1, heads, R, d], k/v [1, kv_heads, S, d]."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    rows, keys = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    visible = block_mask.mask_mod(0, 0, rows[:, None], keys)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~visible, -1e30)
    return scores.softmax(-1) @ v


class MemoryOfFlex(torch.autograd.Function):
    """What the kernels allocate: the output and a float32 per row forward, another and three gradients backward."""

    @staticmethod
    def forward(ctx, q, k, v):
        output, normaliser = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, output, normaliser)
        return output

    @staticmethod
    def backward(ctx, _gradient):
        q, k, v, _output, normaliser = ctx.saved_tensors
        torch.empty_like(normaliser)
        return tuple(map(torch.empty_like, (q, k, v)))


def empty_flex(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, **options) -> Tensor:
    return MemoryOfFlex.apply(q, k, v)
