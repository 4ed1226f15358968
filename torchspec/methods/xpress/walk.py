"""XPress' proposals: all passes first, over whole blocks; what is left to walk is the last pass's law, slot by slot.

The passes read the anchor and what they proposed themselves. A text that is walked along is not fed to them: decoding has none, and a
slot's law in the last pass follows from the one before it, right or wrong. At a temperature each slot is drawn from that law.
"""

import torch
from torch import Tensor

from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.methods.walk import Walk
from torchspec.methods.xpress.model import XPressHead

PASS_ELEMENTS = 1 << 26  # logits of the blocks that are refined together; a pass holds three such tensors


class XPressWalk(Walk):
    def __init__(self, head: XPressHead, rows: Tensor, anchors: Tensor, vocabulary: DraftVocabulary, passes: int, shortlist: int):
        """rows [n, B, H] all of each block's, anchors [n] tokens; shortlist: tokens of a slot that are refined, 0: all."""
        super().__init__(rows[:, 1:], vocabulary.project)
        self.head, self.vocabulary, self.passes, self.shortlist = head, vocabulary, passes, shortlist
        together = max(1, PASS_ELEMENTS // (self.states.shape[1] * len(vocabulary.ids)))
        parts = zip(rows.split(together), anchors.split(together), strict=True)
        self.factors = torch.cat([self._refined(*part) for part in parts])

    def logits(self, before: Tensor) -> Tensor:
        factor = self.factors[:, self.slot]
        return shortlisted(super().logits(before), self.shortlist) + self.head.w2(factor)

    def keep(self, blocks: Tensor) -> None:
        super().keep(blocks)
        self.factors = self.factors[blocks]

    def _refined(self, rows: Tensor, anchors: Tensor) -> Tensor:
        """The last pass's factors [n', B-1, r]."""
        base = self.project(rows[:, 1:]) if self.at_once is None else self.at_once[None]
        base, hidden = shortlisted(base, self.shortlist), self.head.hidden(rows)
        tokens = self.vocabulary.largest(base)
        for last in (False,) * (self.passes - 1) + (True,):
            factors = self.head.factors(hidden, anchors, torch.cat((anchors[:, None], tokens[:, :-1]), dim=1))
            if last:
                break
            tokens, old = self.vocabulary.largest(base + self.head.w2(factors)), tokens
            if torch.equal(tokens, old):
                break  # so would be all passes after it
        return factors


def shortlisted(base: Tensor, count: int) -> Tensor:
    """[..., V] -> the same for the `count` largest of each row, -inf for the others; 0: for none."""
    if count == 0 or count >= base.shape[-1]:
        return base
    return base.masked_fill(base < base.topk(count).values[..., -1:], -torch.inf)
