"""The attention of one layer as each method asks for it, forward and where wanted backward, on tensors without values."""

import torch
from torch import Tensor

from tests.cuda.lowering import DEVICE
from torchspec.methods.dflash.method import attention as dflash_attention
from torchspec.methods.eagle3.method import attention as eagle3_attention
from torchspec.nn.attention import BlockLayout

Heads = tuple[int, int, int]  # query heads, kv heads, head size

QWEN3_8B, SMOLLM2_135M = (32, 8, 128), (9, 3, 64)
WITHOUT_GROUPS, GROUPS_OF_8 = (8, 8, 128), (32, 4, 64)


def layout(documents: int, anchors: int, tokens: int, block_size: int) -> BlockLayout:
    """Documents of about the same length."""
    lengths = [tokens // documents] * documents
    lengths[-1] += tokens - sum(lengths)
    made = (torch.empty(documents, anchors, dtype=dtype, device=DEVICE) for dtype in (torch.int64, torch.bool))
    return BlockLayout(*made, tuple(lengths), block_size)


def rows(count: int, heads: int, size: int, grad: bool) -> Tensor:
    return torch.empty(count, heads, size, dtype=torch.bfloat16, device=DEVICE, requires_grad=grad)


def dflash(where: BlockLayout, heads: Heads, grad: bool) -> Tensor:
    """All slots of all blocks at once."""
    (queries, keys, size), slots = heads, where.anchors.numel() * where.block_size
    context = [rows(sum(where.lengths), keys, size, grad) for _ in "kv"]
    own = [rows(slots, keys, size, grad) for _ in "kv"]
    return _back(dflash_attention(where)(0)(rows(slots, queries, size, grad), *context, *own))


def eagle3(where: BlockLayout, heads: Heads, step: int, grad: bool) -> Tensor:
    """One row of each chain, which has `step` rows of its own behind it."""
    queries, keys, size = heads
    past = [tuple(rows(sum(where.lengths), keys, size, grad) for _ in "kv")]
    past += [tuple(rows(where.anchors.numel(), keys, size, grad) for _ in "kv") for _ in range(step)]
    return _back(eagle3_attention(where, len(past))(rows(where.anchors.numel(), queries, size, grad), tuple(past)))


def _back(output: Tensor) -> Tensor:
    if output.requires_grad:
        output.sum().backward()
    return output
