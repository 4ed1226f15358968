"""The tokens that the softmax of a loss runs over."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchspec.nn.send import send


@dataclass(frozen=True)
class HeadRows:
    """The rows of the head that one loss is computed against."""

    head: Tensor  # [V', H]
    ids: Tensor  # [V'] token of each row
    index: Tensor  # [V] row of each token; of use for labels only, which are all among the rows
    bias: Tensor | None  # [V'] added to the logits; none: these are all rows

    def of(self, readout: Tensor) -> Tensor:
        """A matrix with a row for each token [V, E] -> the rows that belong to these [V', E]."""
        return readout if self.bias is None else readout[self.ids]


class LossVocabulary:
    """The tokens that the softmax of the loss runs over: all of them, or those of the training data and a fresh draw of the others.

    The head is most of the work of a small draft with a large vocabulary. With `negatives` = n, the V - S tokens that never
    occur in the data are represented by n of them, each standing for (V - S) / n: log of that is added to its logit, so the
    normaliser is unbiased and a token without examples still learns not to win.
    """

    def __init__(self, head: Tensor, counts: Tensor, negatives: int | None):
        self.head, self.negatives = head, negatives
        self.all = HeadRows(head, torch.arange(len(head), device=head.device), torch.arange(len(head), device=head.device), None)
        seen, self.unseen = counts.nonzero().flatten().to(head.device), (counts == 0).nonzero().flatten()  # unseen: drawn from on the host
        if negatives is not None and negatives < len(self.unseen):
            self.seen, self.seen_head = seen, head[seen]
            self.index = torch.zeros(len(head), dtype=torch.int64, device=head.device)
            self.index[self.seen] = torch.arange(len(seen), device=head.device)
        else:
            self.negatives = None

    def draw(self, generator: torch.Generator) -> HeadRows:
        if self.negatives is None:
            return self.all
        drawn = self.unseen[torch.randint(len(self.unseen), (self.negatives,), generator=generator)]  # with replacement: unbiased
        drawn = send(drawn, self.head.device)
        bias = torch.zeros(len(self.seen) + self.negatives, device=self.head.device)
        bias[len(self.seen) :] = math.log(len(self.unseen) / self.negatives)
        return HeadRows(torch.cat((self.seen_head, self.head[drawn])), torch.cat((self.seen, drawn)), self.index, bias)
