"""What the choice among a slot's candidates is taught."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """K rows of the loss's vocabulary for each slot, the label always among them: where it is not, it replaces the last."""

    rows: Tensor  # [r, K]
    place: Tensor  # [r] of the label
    held: Tensor  # [r] bool, the label was among them by itself; where it was not, no server could propose it


def with_label(best: Tensor, label: Tensor) -> Candidates:
    """best [r, K] in descending order, label [r]."""
    same = best == label[:, None]
    held, last = same.any(1), best.shape[1] - 1
    place = torch.where(held, same.int().argmax(1), last)
    return Candidates(best.scatter(1, place[:, None], label[:, None]), place, held)


@dataclass(frozen=True)
class Choice:
    loss: Tensor  # [r] the mixture, with gradient
    cross_entropy: Tensor  # [r] of the label among the candidates
    overlap: Tensor | None  # [r] sum of min(p, q)
    first: Tensor  # [r] place of the highest score


def choice_losses(scores: Tensor, place: Tensor, p: Tensor | None, mixture: dict[str, float]) -> Choice:
    """ce = -log q(label) and tv = 1/2 sum |p - q| = 1 - sum min(p, q), for q = softmax(scores), all over the K candidates.

    p [r, K] sums to 1: it is the target's law given that its token is a candidate, p(c) / M with M = sum p(c). A server compares q with
    p itself, and no q does better there than one that is nowhere below p; q = p / M is that, so the loss wants what serving does, and where
    it is reached acceptance is M. Nothing of the target's logits but the candidates' is needed.
    """
    log_q = scores.log_softmax(-1)
    cross_entropy = -log_q.gather(1, place[:, None])[:, 0]
    overlap = None if p is None else torch.minimum(p, log_q.exp()).sum(-1)
    parts = {"ce": lambda: cross_entropy, "tv": lambda: 1 - overlap}
    return Choice(sum(weight * parts[kind]() for kind, weight in mixture.items()), cross_entropy, overlap, scores.argmax(-1))
