"""Attention of context rows among themselves, and of blocks that go on from some of them.

      rows:   context rows of the packed documents | group 0: blocks of S rows | group 1: blocks of S' rows | ...

A context row sees its document up to itself. A row of a block with anchor a sees the document's rows before a, and its own block up to
itself. All rows are queries and keys of one layer. Legend as in attention.py.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from torchspec.nn.attention import BlockLayout, Seen, Sight, flex, flex_mask, seen_by_blocks
from torchspec.nn.tiled_attention import tiled_attention

CAUSAL = Sight(causal=True)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [rows, heads, d], k/v [rows, kv_heads, d] -> [rows, heads, d]


def chain_attention(lengths: tuple[int, ...], groups: tuple[BlockLayout, ...], device: torch.device) -> Attend:
    """lengths: of the documents; groups: blocks of one size each. FlexAttention where it has a backward pass, tiles elsewhere."""
    total = sum(lengths)
    if device.type != "cuda":
        return lambda q, k, v: _tiled(q, k, v, lengths, groups)
    mask = chain_mask(lengths, groups, device)
    return lambda q, k, v: flex(q, k[:total], v[:total], k[total:], v[total:], mask)


def chain_mask(lengths: tuple[int, ...], groups: tuple[BlockLayout, ...], device: torch.device) -> BlockMask:
    """The rule as one BlockMask over all rows."""
    row = torch.arange(sum(lengths), dtype=torch.int32, device=device)
    starts = [row.new_full((length,), end - length) for length, end in zip(lengths, accumulate(lengths), strict=True)]
    seen, keys = [Seen(torch.cat(starts), row + 1, row, row)], len(row)  # the second interval is empty
    for layout in groups:
        seen.append(seen_by_blocks(layout, layout.block_size, layout.block_size, CAUSAL, keys))
        keys += _rows(layout)
    return flex_mask(Seen(*map(torch.cat, zip(*seen, strict=True))), keys)


def _rows(layout: BlockLayout) -> int:
    return layout.anchors.numel() * layout.block_size


def _tiled(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], groups: tuple[BlockLayout, ...]) -> Tensor:
    sizes = [sum(lengths), *map(_rows, groups)]
    (q_context, *q_blocks), (k_context, *k_blocks), (v_context, *v_blocks) = (x.split(sizes) for x in (q, k, v))
    documents = zip(*(x.split(lengths) for x in (q_context, k_context, v_context)), strict=True)
    blocks = zip(q_blocks, k_blocks, v_blocks, groups, strict=True)
    return torch.cat(
        [causal(*document) for document in documents]
        + [tiled_attention(q, k_context, v_context, k, v, layout, CAUSAL) for q, k, v, layout in blocks]
    )


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last rows of a text ask, q [r, heads, d]; all of them are keys, k/v [r', kv_heads, d]. Each row sees those up to itself."""
    seen = None if len(q) == len(k) else torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=True)
    return out[0].transpose(0, 1)
