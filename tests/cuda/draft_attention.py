"""The attention of one layer as each method asks for it, forward and where wanted backward, on tensors without values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.cuda.lowering import DEVICE
from torchspec.methods.block.attention import attention as dflash_attention
from torchspec.methods.eagle3.method import attention as eagle3_attention
from torchspec.nn.attention import WHOLE, BlockLayout, Sight
from torchspec.nn.chain_attention import chain_attention

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


def dflash(where: BlockLayout, heads: Heads, grad: bool, sight: Sight = WHOLE) -> Tensor:
    """All slots of all blocks at once."""
    (queries, keys, size), slots = heads, where.anchors.numel() * where.block_size
    context = [rows(sum(where.lengths), keys, size, grad) for _ in "kv"]
    own = [rows(slots, keys, size, grad) for _ in "kv"]
    return _back(dflash_attention(where, (sight,))(0)(rows(slots, queries, size, grad), *context, *own))


def eagle3(where: BlockLayout, heads: Heads, steps: Sequence[int], grad: bool) -> list[Tensor]:
    """One row of each chain in each step, with as many rows of its own behind it. The masks are made once, as in a forward pass."""
    attend, chains = eagle3_attention(where, max(steps) + 1), where.anchors.numel()

    def attended(step: int) -> Tensor:
        queries, keys, size = heads
        past = [tuple(rows(count, keys, size, grad) for _ in "kv") for count in (sum(where.lengths), *[chains] * step)]
        return _back(attend(rows(chains, queries, size, grad), tuple(past)))

    return [attended(step) for step in steps]


def peagle(where: Sequence[BlockLayout], heads: Heads, grad: bool) -> Tensor:
    """All rows of the context and of chains of several lengths at once."""
    (queries, keys, size), lengths = heads, where[0].lengths
    count = sum(lengths) + sum(layout.anchors.numel() * layout.block_size for layout in where)
    shapes = (queries, size), (keys, size), (keys, size)
    return _back(chain_attention(lengths, tuple(where), DEVICE)(*(rows(count, *shape, grad) for shape in shapes)))


def _back(output: Tensor) -> Tensor:
    if output.requires_grad:
        output.sum().backward()
    return output
