"""Attention of draft blocks on a CPU: what `structured_attention` computes, a few blocks at a time and with its backward written out.

Anchors ascend, so a tile of neighbouring blocks needs the context up to its last anchor only, and within a window no more than the
rows that its first block sees. The scores of a tile stay in the cache from the product to the softmax; of them only the float32 weights
are kept for the backward pass.

Legend as in attention.py, and per document: A blocks, g tile of a blocks, L' context rows that a tile needs, P = G*Q rows that ask per kv
head and block, S own rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from torchspec.nn.attention import WHOLE, BlockLayout, Sight

TILE_ELEMENTS = 1 << 21  # scores of one tile: 8 MiB in float32; smaller ones fit a cache better, but start more products


def tiled_attention(
    q: Tensor, k_context: Tensor, v_context: Tensor, k_block: Tensor, v_block: Tensor, layout: BlockLayout, sight: Sight = WHOLE
) -> Tensor:
    """Same arguments and result as `structured_attention`."""
    return _TiledAttention.apply(q, k_context, v_context, k_block, v_block, layout, sight)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k_context, v_context, k_block, v_block, layout, sight):
        heads, size = q.shape[1:]
        asking, own = _by_document(q, layout, k_context.shape[1]), [_by_document(x, layout, k_context.shape[1]) for x in (k_block, v_block)]
        out, weights = torch.empty_like(asking), []
        slots = asking.shape[3] * k_context.shape[1] // heads
        for n, blocks, near in _tiles(layout, sight, heads * asking.shape[3]):
            k, v = (_context(x, layout, n)[:, near] for x in (k_context, v_context))
            rows, k_own, v_own = (x[n, :, blocks] for x in (asking, *own))  # [kv_heads, a, P or S, d]
            scores = _scores(rows, k, k_own).mul_(size**-0.5)
            scores.unflatten(2, (-1, slots)).add_(_barrier(layout.anchors[n, blocks], near, slots, k_own.shape[2], sight))
            weights.append(torch.softmax(scores, dim=-1, out=scores))
            out[n, :, blocks] = _mixed(scores.to(q.dtype), v, v_own)
        ctx.layout, ctx.sight, ctx.shapes = layout, sight, (q.shape, k_block.shape)
        ctx.save_for_backward(k_context, v_context, asking, *own, *weights)
        return _by_row(out, q.shape)

    @staticmethod
    def backward(ctx, grad_out):
        k_context, v_context, asking, k_own, v_own, *weights = ctx.saved_tensors
        layout, (q_shape, own_shape) = ctx.layout, ctx.shapes
        kv_heads, size = k_context.shape[1:]
        upstream = _by_document(grad_out, layout, kv_heads)
        grad_q, grad_k_own, grad_v_own = (torch.empty_like(x) for x in (asking, k_own, v_own))
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k_context, v_context))  # tiles add up
        for (n, blocks, near), p in zip(_tiles(layout, ctx.sight, q_shape[1] * asking.shape[3]), weights, strict=True):
            k, v = (_context(x, layout, n)[:, near] for x in (k_context, v_context))
            grad_p = _scores(upstream[n, :, blocks], v, v_own[n, :, blocks])
            slope = torch._softmax_backward_data(grad_p, p, -1, torch.float32).mul_(size**-0.5).to(asking.dtype)
            grad_q[n, :, blocks] = _mixed(slope, k, k_own[n, :, blocks])
            for grad, grad_own, rows, factor in ((grad_k, grad_k_own, asking, slope), (grad_v, grad_v_own, upstream, p.to(asking.dtype))):
                rows = rows[n, :, blocks]
                by_key = factor.transpose(-1, -2)  # [kv_heads, a, L' + S, P]
                grad_own[n, :, blocks] = by_key[:, :, k.shape[1] :] @ rows
                _context(grad, layout, n)[:, near] += factor[..., : k.shape[1]].flatten(1, 2).transpose(1, 2) @ rows.flatten(1, 2)
        return (
            _by_row(grad_q, q_shape), grad_k.to(k_context.dtype), grad_v.to(v_context.dtype),
            _by_row(grad_k_own, own_shape), _by_row(grad_v_own, own_shape), None, None,
        )  # fmt: skip


def _by_document(x: Tensor, layout: BlockLayout, kv_heads: int) -> Tensor:
    """[N*A*Q, heads, d] -> [N, kv_heads, A, P = G*Q, d]."""
    documents, count = layout.anchors.shape
    x = x.reshape(documents, count, -1, kv_heads, x.shape[1] // kv_heads, x.shape[2])
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).contiguous()


def _by_row(x: Tensor, shape: torch.Size) -> Tensor:
    """Back to [N*A*Q, heads, d]."""
    return x.unflatten(3, (shape[1] // x.shape[1], -1)).permute(0, 2, 4, 1, 3, 5).reshape(shape)


def _context(x: Tensor, layout: BlockLayout, n: int) -> Tensor:
    """The rows of document n of [T, kv_heads, d], as [kv_heads, L, d]."""
    start = sum(layout.lengths[:n])
    return x[start : start + layout.lengths[n]].transpose(0, 1)


def _tiles(layout: BlockLayout, sight: Sight, rows: int) -> Iterator[tuple[int, slice, slice]]:
    """Document, its blocks, and the context rows that they see between them. rows: scores of a block per context row."""
    for n, length in enumerate(layout.lengths):
        step = max(1, TILE_ELEMENTS // (rows * length))
        for first in range(0, layout.anchors.shape[1], step):
            blocks = slice(first, first + step)
            lowest, longest = (int(x) for x in layout.anchors[n, blocks].aminmax())
            yield n, blocks, slice(lowest - sight.seen_context(lowest), longest)


def _barrier(anchors: Tensor, near: slice, slots: int, own: int, sight: Sight) -> Tensor:
    """What is added to scores of the blocks at these anchors [a]: 0 or -inf, [a, 1, Q or 1, L' + S]. A sum is vectorised, a fill not."""
    t, anchor, slot = torch.arange(near.start, near.stop), anchors[:, None, None], torch.arange(slots)[:, None]
    seen, seen_own = t < anchor, torch.ones(1, own, dtype=torch.bool)
    if sight != WHOLE:
        seen, seen_own = seen & sight.sees(anchor + slot - t), sight.sees(slot - torch.arange(own))
    seen = torch.cat((seen, seen_own.expand(len(anchors), -1, -1)), dim=-1)
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]


def _scores(rows: Tensor, k: Tensor, k_own: Tensor) -> Tensor:
    """rows [kv_heads, a, P, d] times context keys [kv_heads, L', d] and keys of their own blocks -> float32 [kv_heads, a, P, L' + S]."""
    scores = torch.empty((*rows.shape[:3], k.shape[1] + k_own.shape[2]), dtype=torch.float32)
    scores[..., : k.shape[1]] = (rows.flatten(1, 2) @ k.transpose(1, 2)).view(*rows.shape[:3], -1)
    scores[..., k.shape[1] :] = rows @ k_own.transpose(-1, -2)
    return scores


def _mixed(weights: Tensor, v: Tensor, v_own: Tensor) -> Tensor:
    """weights [kv_heads, a, P, L' + S] of context and own values -> [kv_heads, a, P, d]."""
    context, own = weights.split((v.shape[1], v_own.shape[2]), dim=-1)
    return (context.flatten(1, 2) @ v).view(*weights.shape[:3], -1) + own @ v_own
