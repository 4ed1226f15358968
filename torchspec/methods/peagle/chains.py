"""Which chains of a batch are trained, and how deep: the deeper, the fewer, so that rows do not grow with the depths.

P-EAGLE's COD sampling ("conditional drop") takes, at depth d, a share max(r^d, r_min) of the n chains, out of those that were taken at
depth d - 1: a chain is dropped from some depth on. So is it here, and so many are kept. What differs, and why:

* Chains start at `num_anchors` positions, as in every method of this package; there each position is one.
* The chains to drop are drawn once for all depths, by one order of them, instead of anew at each depth: the same law, since what is drawn
  out of a random subset is a random subset.
* Shares are rounded up, so that every answer has a whole chain, by which acceptance is measured; there a short one has none.
* A chain that reaches its answer's end is not replaced by another: its further rows have no label. There another takes its place; that
  makes the draw depend on where answers end, for at most D rows of each.

Chains of one length are a group: a rectangle of rows, which attention takes as it takes blocks.
"""

import math

import torch
from torch import Tensor

from torchspec.methods.blocks import draw_anchors, laid_out, seeded
from torchspec.methods.eagle3.method import chains
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.nn.attention import BlockLayout
from torchspec.records import Batch

DROPS = 1  # tells the draw of lengths from that of anchors


def shares(options: PeagleConfig) -> list[float]:
    """Of the chains, by depth: which part is trained down to it."""
    return [max(options.down_sample_ratio**depth, options.down_sample_ratio_min) for depth in range(options.num_depths)]


def chain_lengths(options: PeagleConfig) -> list[int]:
    """Numbers of depths that chains may have, ascending; the last is all of them."""
    kept = shares(options)
    return [depth for depth in range(1, options.num_depths) if kept[depth] < kept[depth - 1]] + [options.num_depths]


def lengths_of(count: int, options: PeagleConfig, generator: torch.Generator) -> Tensor:
    """The depths of `count` chains [count]."""
    kept = torch.tensor([math.ceil(share * count) for share in shares(options)])
    return (torch.randperm(count, generator=generator)[:, None] < kept).sum(1)


def draw_chains(batch: Batch, options: PeagleConfig, seed: int) -> tuple[BlockLayout, ...]:
    """A layout for each length, of blocks with one slot more, the anchor; on the host. Whole chains are the last."""
    drawn = [anchors[anchors > 0] for anchors in draw_anchors(batch, options.num_anchors, seed)]
    depths = [
        lengths_of(len(anchors), options, seeded(seed, batch.epoch, index, DROPS))
        for index, anchors in zip(batch.indices, drawn, strict=True)
    ]
    return tuple(
        chains(laid_out([anchors[own == length] for anchors, own in zip(drawn, depths, strict=True)], batch, length + 1))
        for length in chain_lengths(options)
    )
