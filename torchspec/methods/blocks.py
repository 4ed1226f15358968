"""Anchors, labels and metrics of draft blocks, the same for every method.

A block starts at an anchor, the last committed token; slot k = 1..B-1 predicts the token k places after it, be it in one
pass over all slots (DFlash) or in B-1 steps (EAGLE-3).
"""

import numpy as np
import torch
from torch import Tensor

from torchspec.nn.attention import BlockLayout
from torchspec.records import Batch


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on nothing but the numbers."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def sample_anchors(batch: Batch, num_anchors: int, block_size: int, seed: int) -> BlockLayout:
    """Up to `num_anchors` positions t of each document with m_t = m_{t+1} = 1, without replacement, in ascending order.

    The draw depends on (seed, epoch, sample) alone, not on the batch: a resumed or re-sharded run draws the same.
    CUDA keeps the shape [N, num_anchors] whatever the batch holds, so that less is compiled twice.
    """
    drawn = []
    for index, loss_mask in zip(batch.indices, batch.loss_mask.cpu().split(batch.lengths), strict=True):
        candidates = (loss_mask[:-1] & loss_mask[1:]).nonzero().flatten()
        order = torch.randperm(len(candidates), generator=seeded(seed, batch.epoch, index))
        drawn.append(candidates[order[:num_anchors]].sort().values)
    count = num_anchors if batch.ids.is_cuda else max(1, *map(len, drawn), 1)
    anchors, valid = torch.zeros(len(drawn), count, dtype=torch.int64), torch.zeros(len(drawn), count, dtype=torch.bool)
    for n, positions in enumerate(drawn):
        anchors[n, : len(positions)], valid[n, : len(positions)] = positions, True
    device = batch.ids.device
    return BlockLayout(anchors.to(device, non_blocking=True), valid.to(device, non_blocking=True), batch.lengths, block_size)


def block_labels(batch: Batch, layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """Labels and binary mask [N, A, B]: slot k >= 1 of a valid block predicts x_{anchor+k}, until the answer or document ends."""
    slots = torch.arange(layout.block_size, device=batch.ids.device)
    position = layout.anchors[:, :, None] + slots
    lengths = torch.tensor(layout.lengths).to(batch.ids.device, non_blocking=True)[:, None, None]
    row = layout.starts[:, None, None] + position.minimum(lengths - 1)
    supervised = (position < lengths) & batch.loss_mask[row] & layout.valid[:, :, None]
    return batch.ids[row], supervised.cumprod(-1).bool() & (slots > 0)


def following_tokens(ids: Tensor, anchors: Tensor, block_size: int) -> Tensor:
    """x_{a+1} .. x_{a+B-1} of each anchor a of one text, [n, B-1]; places beyond its end hold its last token."""
    position = anchors[:, None] + torch.arange(1, block_size, device=ids.device)
    return ids[position.clamp(max=len(ids) - 1)]


def slot_metrics(mask: Tensor, valid: Tensor, losses: Tensor, correct: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and counts per slot [B-1], and the acceptance length averaged over blocks (prefix of right slots, plus one)."""
    loss, right = torch.zeros(mask.shape, device=mask.device), torch.zeros_like(mask)
    loss[mask], right[mask] = losses, correct
    counts = mask.sum((0, 1))[1:]
    prefix = right[:, :, 1:].cumprod(-1).sum(-1) + 1
    return {
        "slot_loss": (loss.sum((0, 1))[1:], counts),
        "slot_accuracy": (right.sum((0, 1))[1:], counts),
        "block_tau": ((prefix * valid).sum(), valid.sum()),
    }
