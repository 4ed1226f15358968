"""Anchors, labels and metrics of draft blocks, the same for every method.

A block starts at an anchor, the last committed token; slot k = 1..B-1 predicts the token k places after it, be it in one
pass over all slots (DFlash) or in B-1 steps (EAGLE-3).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchspec.nn.attention import BlockLayout
from torchspec.nn.losses import Teacher
from torchspec.nn.send import send
from torchspec.records import Batch
from torchspec.target.frozen import FrozenTarget


def seeded(*numbers: int) -> torch.Generator:
    """A generator that depends on nothing but the numbers."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def sample_anchors(batch: Batch, num_anchors: int, block_size: int, seed: int) -> BlockLayout:
    """Up to `num_anchors` positions t of each document with m_t = m_{t+1} = 1, without replacement, in ascending order; on the host."""
    return laid_out(draw_anchors(batch, num_anchors, seed), batch, block_size)


def draw_anchors(batch: Batch, num_anchors: int, seed: int) -> list[Tensor]:
    """Those of each document [n]. The draw depends on (seed, epoch, sample) alone, not on the batch: a resumed or re-sharded run draws
    the same.
    """
    drawn = []
    for index, loss_mask in zip(batch.indices, batch.loss_mask.split(batch.lengths), strict=True):
        candidates = (loss_mask[:-1] & loss_mask[1:]).nonzero().flatten()
        order = torch.randperm(len(candidates), generator=seeded(seed, batch.epoch, index))
        drawn.append(candidates[order[:num_anchors]].sort().values)
    return drawn


def laid_out(drawn: list[Tensor], batch: Batch, block_size: int) -> BlockLayout:
    """Blocks at the anchors drawn for each document of a batch; what documents with fewer lack is invalid."""
    count = padded(max(1, *map(len, drawn), 1), batch.context.is_cuda)
    anchors, valid = torch.zeros(len(drawn), count, dtype=torch.int64), torch.zeros(len(drawn), count, dtype=torch.bool)
    for n, positions in enumerate(drawn):
        anchors[n, : len(positions)], valid[n, : len(positions)] = positions, True
    return BlockLayout(anchors, valid, batch.lengths, block_size)


def padded(count: int, on_gpu: bool) -> int:
    """Blocks per document for the document that has most. A GPU takes them by eights: 128 rows of blocks of 16 are a tile of attention."""
    return -(-count // 8) * 8 if on_gpu else count


@dataclass(frozen=True)
class Slots:
    """What the slots of a layout's blocks are to predict. Which of them count is known on the host, so no step waits for a GPU to tell."""

    labels: Tensor  # [N, A, B] x_{anchor+k}; beyond the document's end its last token
    mask: Tensor  # [N, A, B] bool: counts in the loss
    rows: Tensor  # [r] the places of those among all N*A*B

    def to(self, device: torch.device) -> "Slots":
        return Slots(*(send(x, device) for x in (self.labels, self.mask, self.rows)))

    def pick(self, values: Tensor) -> Tensor:
        """[N*A*B, ...] -> [r, ...] of the slots that count."""
        return values.index_select(0, self.rows)

    def spread(self, values: Tensor) -> Tensor:
        """[r] -> [N, A, B], zero where nothing counts."""
        return values.new_zeros(self.mask.numel()).index_copy(0, self.rows, values).view(self.mask.shape)


def block_labels(batch: Batch, layout: BlockLayout) -> Slots:
    """Slot k >= 1 of a valid block predicts x_{anchor+k}, until the answer or the document ends. All on the host."""
    slots = torch.arange(layout.block_size)
    position, lengths = layout.anchors[:, :, None] + slots, torch.tensor(layout.lengths)[:, None, None]
    row = layout.starts[:, None, None] + position.minimum(lengths - 1)
    supervised = (position < lengths) & batch.loss_mask[row] & layout.valid[:, :, None]
    mask = supervised.cumprod(-1).bool() & (slots > 0)
    return Slots(batch.ids[row], mask, mask.flatten().nonzero().flatten())


def taught_by(target: FrozenTarget, context: Tensor, rows: Tensor) -> Teacher:
    """The target's law after some rows [r] of a batch's context, whose last columns are the last layer's states. rows: on the host."""
    return Teacher(target.normed(context[:, -target.head.shape[1] :]), rows, target.law)


def rows_before(layout: BlockLayout, slots: Slots) -> Tensor:
    """[r] of the slots that count, the context row of the token before: slot k's stands k - 1 behind the anchor. All on the host."""
    before = layout.starts[:, None, None] + layout.anchors[:, :, None] + torch.arange(layout.block_size) - 1
    return slots.pick(before.flatten())


def following_tokens(ids: Tensor, anchors: Tensor, block_size: int) -> Tensor:
    """x_{a+1} .. x_{a+B-1} of each anchor a of one text, [n, B-1]; places beyond its end hold its last token."""
    position = anchors[:, None] + torch.arange(1, block_size, device=ids.device)
    return ids[position.clamp(max=len(ids) - 1)]


def slot_metrics(slots: Slots, valid: Tensor, losses: Tensor, correct: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and counts per slot [B-1], and the acceptance length averaged over blocks (prefix of right slots, plus one)."""
    loss, right, counts = slots.spread(losses), slots.spread(correct), slots.mask.sum((0, 1))[1:]
    prefix = right[:, :, 1:].cumprod(-1).sum(-1) + 1
    return {
        "slot_loss": (loss.sum((0, 1))[1:], counts),
        "slot_accuracy": (right.sum((0, 1))[1:], counts),
        "block_tau": ((prefix * valid).sum(), valid.sum()),
    }
