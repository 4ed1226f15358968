"""What a head reads of some blocks, and what a block is trained on."""

from dataclasses import dataclass

from torch import Tensor

from torchspec.methods.block.model import BlockDraft
from torchspec.methods.blocks import Slots
from torchspec.nn.loss_vocabulary import HeadRows
from torchspec.nn.losses import Teacher


@dataclass(frozen=True)
class Blocks:
    """n blocks and the S slots of each that propose: all rows, or all but the anchor's."""

    states: Tensor  # [n, S, H] after the last norm
    anchors: Tensor  # [n] the last committed token
    rows: Tensor  # [n, B, H] the states of all rows, also of those that propose nothing
    c: Tensor  # [T, H] rows of the context
    last: Tensor  # [n] which of them is the token's before the anchor; -1 where there is none

    @property
    def context(self) -> Tensor:
        """[n, H] the row of c of the token before the anchor; zero where there is none."""
        return self.c[self.last.clamp(min=0)] * (self.last >= 0)[:, None]


def blocks_of(anchors: Tensor, last: Tensor, proposing: slice, draft: BlockDraft, states: Tensor, c: Tensor) -> Blocks:
    """To be given to the draft's forward as `finish`, with its first three arguments.

    anchors [n] tokens, last [n] context rows before them (-1: none), proposing: rows of a block; states [n * rows, H], c [T, H].
    """
    rows = states.view(len(anchors), -1, states.shape[-1])
    return Blocks(rows[:, proposing], anchors, rows, c, last)


@dataclass(frozen=True)
class Lesson:
    """What the slots of a micro-batch's blocks are to predict; places count n = N*A blocks of S slots each."""

    slots: Slots
    valid: Tensor  # [N, A] bool
    vocabulary: HeadRows  # that the softmax of this step runs over
    teacher: Teacher | None  # the target's law at the slots that count; none where the loss does not ask for it
    progress: float  # share of the run's optimizer steps that are done

    @property
    def before(self) -> Tensor:
        """[n, S] the token before each slot in the text."""
        return self.slots.labels[:, :, :-1].flatten(0, 1)

    @property
    def labels(self) -> Tensor:
        """[r] tokens of the slots that count."""
        return self.slots.pick(self.slots.labels.flatten())

    def pick(self, values: Tensor) -> Tensor:
        """[n, S, ...] -> [r, ...] of the slots that count."""
        size = self.slots.labels.shape[-1]
        block, slot = self.slots.rows // size, self.slots.rows % size
        return values.flatten(0, 1).index_select(0, block * (size - 1) + slot - 1)
