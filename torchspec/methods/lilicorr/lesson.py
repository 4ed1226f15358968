"""What the lattice learns: to walk along the text, and away from what the target would reject (docs/lilicorr.md)."""

from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 2.0  # how far the text's token is to be ahead of the next best one, in logits; as published


@dataclass(frozen=True)
class TextPath:
    """The text's path through the lattice of n blocks, as far as its tokens are candidates."""

    held: Tensor  # [n, S] bool: the text's token is a candidate of its slot
    gold: Tensor  # [n, S] which one; 0 where it is none
    rows: Tensor  # [n, S, K] scores after the text's token of the slot before; of no meaning where that is no candidate

    @property
    def reached(self) -> Tensor:
        """[n, S] bool: the text's tokens up to this one are candidates, so the walk can be right so far."""
        return self.held.cumprod(1).bool()

    @property
    def right(self) -> Tensor:
        """[n, S] bool: the walk goes on with the text's token, after the text's tokens."""
        return self.reached & (self.rows.argmax(-1) == self.gold)


def text_path(tokens: Tensor, text: Tensor, scores: Tensor) -> TextPath:
    """tokens [n, S, K] candidates, text [n, S], scores [n, S, K, K]."""
    hit = tokens == text[:, :, None]
    gold = hit.int().argmax(-1)
    before = torch.cat((torch.zeros_like(gold[:, :1]), gold[:, :-1]), dim=1)
    rows = scores.take_along_dim(before[:, :, None, None], dim=2)[:, :, 0]
    return TextPath(hit.any(-1), gold, rows)


def path_losses(rows: Tensor, gold: Tensor, mixture: dict[str, float], target: Tensor | None) -> Tensor:
    """rows [r, K] scores, gold [r], target [r, K] the target's own logits of the candidates -> [r] float32, the mixture of

    ce      -log q of the text's token, q the softmax of its row
    margin  how much the text's token lacks to be MARGIN ahead of the next best candidate
    pen     sum q w, where w is how much less than the text's token the target thinks of a candidate: 0 of those it likes as well
    tv      1/2 sum |p - q|, p the target's law given that the token is one of the candidates
    """
    log_q, gold = rows.log_softmax(-1), gold[:, None]
    found = {}
    if "ce" in mixture:
        found["ce"] = -log_q.gather(1, gold)[:, 0]
    if "margin" in mixture:
        ahead = rows.gather(1, gold) - rows.scatter(1, gold, -torch.inf).amax(-1, keepdim=True)
        found["margin"] = (MARGIN - ahead[:, 0]).relu()
    if "pen" in mixture:
        found["pen"] = (log_q.exp() * (target.gather(1, gold) - target).relu()).sum(-1)
    if "tv" in mixture:
        found["tv"] = (target.softmax(-1) - log_q.exp()).abs().sum(-1) / 2
    return sum(weight * found[kind] for kind, weight in mixture.items())
