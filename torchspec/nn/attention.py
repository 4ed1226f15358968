"""Attention of draft blocks over [context ; own block]: structured (any device, the oracle) and FlexAttention (CUDA).

      KV:      context rows of the packed documents   | block 0  | block 1  | ...
               d0 d0 d0 d0 d0 d0 | d1 d1 d1 d1 d1      | s0 .. sB | s0 .. sB |
  block 0 of d0, anchor 3:
               v  v  v  .  .  .    .  .  .  .  .         v .. v     .    .        every slot sees the same

Rule for a query in block j of document n: context row t is visible iff it belongs to n and t < anchor_j (strict: when
serving, the anchor's own target state does not exist yet); own-block slots are visible; nothing else is. A layer's `Sight` takes
away from that by the distance between query and key alone.
Legend: N documents, T context rows, A blocks per document, B slots, R = N*A*B draft rows, d head size.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from torchspec.nn.send import send

TILE = 128  # rows and keys of a tile of a BlockMask


@dataclass(frozen=True)
class Sight:
    """How far the rows of a layer see; a key at position j lies i - j before a query at position i.

    window w: |i - j| < w, so that a row itself is one of the w, as in Transformers (SGLang stores w - 1); none: everything.
    causal: no slot sees a later one; of the context every row is earlier.
    """

    window: int | None = None
    causal: bool = False

    def sees(self, distance: Tensor) -> Tensor:
        """distance i - j of pairs of positions -> bool."""
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        return seen if self.window is None else seen & (distance.abs() < self.window)

    def seen_context(self, rows: int) -> int:
        """How many of the last context rows the first slot of a block sees, which stands right behind them: later slots see no other."""
        return rows if self.window is None else min(rows, self.window - 1)


WHOLE = Sight()


@dataclass(frozen=True)
class BlockLayout:
    """Where the blocks of a packed batch sit: drawn on the host, then moved to where they are computed."""

    anchors: Tensor  # [N, A] int64, position of the anchor inside its document; 0 where invalid
    valid: Tensor  # [N, A] bool
    lengths: tuple[int, ...]  # N document lengths
    block_size: int

    @cached_property
    def starts(self) -> Tensor:
        """[N] first context row of each document."""
        return send(torch.tensor([0, *accumulate(self.lengths[:-1])]), self.anchors.device)

    @cached_property
    def positions(self) -> tuple[Tensor, Tensor]:
        """Rotary positions of the context rows [T] and of the draft rows [R]; both count from the document's start."""
        context = torch.cat([torch.arange(length, device=self.anchors.device) for length in self.lengths])
        slots = torch.arange(self.block_size, device=self.anchors.device)
        return context, (self.anchors[:, :, None] + slots).flatten()

    def to(self, device: torch.device) -> "BlockLayout":
        if self.anchors.device == device:
            return self
        return BlockLayout(send(self.anchors, device), send(self.valid, device), self.lengths, self.block_size)


def structured_attention(
    q: Tensor, k_context: Tensor, v_context: Tensor, k_block: Tensor, v_block: Tensor, layout: BlockLayout, sight: Sight = WHOLE
) -> Tensor:
    """q [N*A*Q, heads, d], k/v_context [T, kv_heads, d], k/v_block [N*A*S, kv_heads, d] -> [N*A*Q, heads, d].

    Each block asks with Q rows and has S rows of its own: both B where a block is denoised at once; one row that asks and S
    earlier ones in step S of a chain, which see everything. One document at a time: its blocks against its own context rows, and each
    block against itself, one softmax over both. A block without own rows must see a context row.
    """
    heads, size = q.shape[1:]
    kv_heads, (documents, count) = k_context.shape[1], layout.anchors.shape
    groups, slots, own = heads // kv_heads, len(q) // layout.anchors.numel(), len(k_block) // layout.anchors.numel()
    q = q.view(documents, count, slots, kv_heads, groups, size).permute(0, 3, 4, 1, 2, 5)  # [N, kv_heads, G, A, Q, d]
    k_block, v_block = (x.view(documents, count, own, kv_heads, size).permute(0, 3, 1, 2, 4)[:, :, None] for x in (k_block, v_block))
    slot, output = torch.arange(slots, device=q.device), []
    unseen_own = ~sight.sees(slot[:, None] - torch.arange(own, device=q.device))  # [Q, S]
    contexts = zip(k_context.split(layout.lengths), v_context.split(layout.lengths), strict=True)
    for n, (k, v) in enumerate(contexts):  # k, v [L, kv_heads, d]
        longest = int(layout.anchors[n].max())
        k, v = k[:longest].transpose(0, 1), v[:longest].transpose(0, 1)  # [kv_heads, L', d], L' rows that any block sees
        t, anchor = torch.arange(longest, device=q.device), layout.anchors[n][:, None, None]
        visible = (t < anchor) & sight.sees(anchor + slot[:, None] - t)  # [A, Q, L']
        in_context = (q[n].flatten(1, 3) @ k.transpose(1, 2)).view(kv_heads, groups, count, slots, longest)
        in_context = in_context.float().masked_fill(~visible, float("-inf"))
        in_block = (q[n] @ k_block[n].transpose(-1, -2)).float().masked_fill(unseen_own, float("-inf"))  # [kv_heads, G, A, Q, S]
        weights = (torch.cat((in_context, in_block), dim=-1) * size**-0.5).softmax(dim=-1).to(q.dtype)
        from_context, from_block = weights.split((longest, own), dim=-1)
        mixed = (from_context.flatten(1, 3) @ v).view(kv_heads, groups, count, slots, size) + from_block @ v_block[n]
        output.append(mixed.permute(2, 3, 0, 1, 4).reshape(count * slots, heads, size))
    return torch.cat(output)


class Seen(NamedTuple):
    """The keys that each row sees: two intervals, begin to end of the context and own_begin to own_end of its block; int32 [rows]."""

    begin: Tensor
    end: Tensor
    own_begin: Tensor
    own_end: Tensor


def seen_by_blocks(layout: BlockLayout, slots: int, own: int, sight: Sight, first: int) -> Seen:
    """The same rule as intervals. slots Q, own S: rows that ask and own rows of each block; first: of all own rows, among the keys.

    An invalid block sees only itself.
    """
    device, total, blocks = layout.anchors.device, sum(layout.lengths), layout.anchors.numel()
    slot = torch.arange(slots, device=device)
    start = layout.starts.repeat_interleave(layout.anchors.shape[1])[:, None]  # [N*A, 1] first context row of the document
    anchor = start + (layout.anchors * layout.valid).reshape(-1, 1)  # and the first that the block must not see
    block = first + own * torch.arange(blocks, device=device)[:, None]  # its first own row
    back = total + slots + own if sight.window is None else sight.window - 1  # rows before itself that a row sees, or more than there are
    forward = 0 if sight.causal else back
    ends = (
        torch.maximum(start, anchor + slot - back), anchor,
        block + (slot - back).clamp(min=0), block + (slot + 1 + forward).clamp(max=own),
    )  # fmt: skip
    # [N*A*Q]; contiguous, since a single block's would have a stride of its own, and that would be compiled anew
    return Seen(*(x.int().expand(blocks, slots).contiguous().flatten() for x in ends))


def flex_block_mask(layout: BlockLayout, slots: int, own: int, sight: Sight = WHOLE) -> BlockMask:
    """The same rule as a BlockMask over KV = [T context rows ; N*A*S own rows]."""
    total = sum(layout.lengths)
    return flex_mask(seen_by_blocks(layout, slots, own, sight, total), total + layout.anchors.numel() * own)


def flex_mask(seen: Seen, keys: int) -> BlockMask:
    """The BlockMask of rows that see two intervals of keys.

    Its tiles follow from their ends: rows x tiles, where evaluating the rule for every pair of rows takes gigabytes at 512 blocks of
    16. The rule captures tensors only: a captured number would be compiled in, and the number of context rows is another one in every
    batch.
    """
    begin, end, own_begin, own_end = seen

    def visible(batch, head, query, key):
        return ((key >= begin[query]) & (key < end[query])) | ((key >= own_begin[query]) & (key < own_end[query]))

    rows, device = len(begin), begin.device
    some, every = (torch.zeros(-(-rows // TILE), -(-keys // TILE), dtype=torch.int32, device=device) for _ in range(2))
    tile = TILE * torch.arange(some.shape[1], device=device)  # first key of each tile
    intervals = [(x[:, None], y[:, None]) for x, y in ((begin, end), (own_begin, own_end))]
    row_tile = torch.arange(rows, device=device) // TILE
    some.index_add_(0, row_tile, sum(((x < tile + TILE) & (y > tile) & (x < y)).int() for x, y in intervals))
    every.index_add_(0, row_tile, sum(((x <= tile) & (y >= tile + TILE)).int() for x, y in intervals))
    full = every == TILE  # all rows of the tile see all of its keys; never so for the last rows, which do not fill a tile
    listed = [x for tiles in ((some > 0) & ~full, full) for x in _listed(tiles)]
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=TILE, mask_mod=visible, seq_lengths=(rows, keys))


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """bool [row tiles, key tiles] -> how many of each row are set, and the set ones first; int32 [1, 1, ...]."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


# A run needs six or seven graphs, with few or many rows, with a backward pass or without. Past Dynamo's limit of eight the operator
# would run uncompiled, with the scores of all pairs in memory, tens of gigabytes: the limit is raised, and an error beyond it.
torch._dynamo.config.recompile_limit, torch._dynamo.config.fail_on_recompile_limit_hit = 64, True
_compiled_flex = torch.compile(flex_attention)  # lengths that change become symbols; with dynamic=False each would be compiled
# Below 128 rows PyTorch would take its decoding kernel, which has no tiles for most groups of heads and raises (torch 2.11, 2.13).
KERNEL = {"BACKEND": "TRITON"}


def flex(q: Tensor, k_context: Tensor, v_context: Tensor, k_block: Tensor, v_block: Tensor, mask: BlockMask) -> Tensor:
    """Same arguments and result as `structured_attention`, the layout given as its BlockMask."""
    k, v = torch.cat((k_context, k_block)), torch.cat((v_context, v_block))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    if q.is_cuda:
        out = _compiled_flex(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=KERNEL)
    else:  # only the forward exists: the tests compare it
        out = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)
