"""The tokens that a draft can propose: all of the target's, or the most frequent ones of the data with their rows of the head."""

from dataclasses import dataclass

import torch
from torch import Tensor

ARGMAX_ROWS = 256  # per product with the head: bounds memory when a whole document is proposed


def frequent_tokens(counts: Tensor, size: int) -> Tensor:
    """counts [V] of supervised tokens -> the `size` most frequent ids, ascending; lower ids first among equals."""
    return counts.argsort(descending=True, stable=True)[:size].sort().values


@dataclass(frozen=True)
class DraftVocabulary:
    head: Tensor  # [V_d, H] frozen rows of the target's head
    ids: Tensor  # [V_d] target id of each row

    def greedy(self, hidden: Tensor) -> Tensor:
        """[r, H] -> the draft's first choice, as target ids [r]."""
        return self.ids[torch.cat([(rows @ self.head.T).argmax(-1) for rows in hidden.split(ARGMAX_ROWS)])]
