"""How proposals come about, one slot after another, for n blocks side by side: a slot may depend on the token before it.

      slot       1           2           3
      before     anchor      x_1         x_2      drafting: what was proposed; scoring a text: the text's own tokens

Up to the first wrong one, a draft's own proposals are the text's tokens: a walk that is fed with the text counts what decoding
would have accepted, to the last token, without decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchspec.acceptance.sampling import Sampler, log_probability
from torchspec.methods.vocabulary import DraftVocabulary


class Walk:
    """Blocks whose slots do not look at one another's tokens. Methods whose slots do override `logits` or `keep`."""

    def __init__(self, states: Tensor, project: Callable[[Tensor], Tensor]):
        """states [n, S, H] normed, of the slots that propose; project: [r, H] -> logits [r, V_d]."""
        self.states, self.project, self.slot = states, project, 0
        # one block alone reads the head once for all slots: reading it is most of what a slot costs
        self.at_once = project(states[0]) if len(states) == 1 else None

    def logits(self, before: Tensor) -> Tensor:
        """before [n]: the token before the next slot -> that slot's logits [n, V_d]."""
        slot, self.slot = self.slot, self.slot + 1
        return self.project(self.states[:, slot]) if self.at_once is None else self.at_once[slot : slot + 1]

    def confidence(self, before: Tensor) -> Tensor:
        """The token before the next slot [n] -> float32 logits [n] of the chance that the slot's draft is accepted if those before it are.

        Only of methods with such a head. It must not depend on what the slot will propose: an end chosen by that would bias the text.
        """
        raise NotImplementedError("this draft has no confidence head")

    def keep(self, blocks: Tensor) -> None:
        """The blocks [m] that go on, one or more."""
        self.states = self.states[blocks]


@dataclass(frozen=True)
class Stop:
    """Where the drafting of a single block ends before its last slot."""

    least: float  # chance that all drafts up to the next are accepted; below, the next is not drafted
    temperatures: list[float]  # that the logits of each slot's confidence are divided by

    def survival(self, walk: Walk, before: Tensor) -> float:
        """The chance of the next slot alone."""
        return float((walk.confidence(before) / self.temperatures[walk.slot]).sigmoid())


def draft(
    walk: Walk, before: Tensor, vocabulary: DraftVocabulary, sampler: Sampler, size: int, stop: Stop | None = None
) -> tuple[Tensor, Tensor | None]:
    """The proposals after the anchors `before` [n] -> target ids [n, S], each drawn after the one before it, and what they were drawn
    from, [n, S, V]; none where greedy. size: V. stop: of one block, whose proposals may then be fewer, or none.
    """
    tokens, laws, survival = [before.new_empty(len(before), 0)], [], 1.0
    for _ in range(walk.states.shape[1]):
        if stop is not None:
            survival *= stop.survival(walk, before)
            if survival < stop.least:
                break
        before, q = vocabulary.choose(walk.logits(before), sampler, size)
        tokens.append(before[:, None])
        laws.append(q)
    if sampler.temperature == 0:
        return torch.cat(tokens, 1), None
    return torch.cat(tokens, 1), torch.stack(laws, 1) if laws else walk.states.new_empty(len(before), 0, size, dtype=torch.float32)


def matches(walk: Walk, before: Tensor, text: Tensor, vocabulary: DraftVocabulary) -> Tensor:
    """The text after the anchors `before` [n], [n, S] -> how many greedy drafts are its tokens, up to the first that is not [n].

    A slot is looked at only where all before it are right: the head is most of a draft's work.
    """
    count, right = text.new_zeros(len(text)), torch.arange(len(text), device=text.device)
    for slot in range(text.shape[1]):
        agrees = vocabulary.largest(walk.logits(before)) == text[right, slot]
        right = right[agrees]
        if len(right) == 0:
            break
        count[right] += 1
        before = text[right, slot]
        walk.keep(agrees.nonzero().flatten())
    return count


def confidences(walk: Walk, before: Tensor, text: Tensor, vocabulary: DraftVocabulary) -> tuple[Tensor, Tensor]:
    """The text after the anchors `before` [n], [n, S] -> logits [n, S] of the confidence in greedy drafts, and bool [n, S]: are they, and
    all before them, the text's tokens.
    """
    logits, right = [], []
    for tokens in text.T:
        logits.append(walk.confidence(before))
        before = vocabulary.largest(walk.logits(before))
        right.append(before == tokens)
    return torch.stack(logits, 1), torch.stack(right, 1).cumprod(1).bool()


def log_probabilities(walk: Walk, before: Tensor, text: Tensor, vocabulary: DraftVocabulary, temperature: float) -> Tensor:
    """log q of the text after the anchors `before` [n], each slot fed with the text: [n, S] -> float32 [n, S].

    -inf for a token that the draft does not have.
    """
    parts = []
    for tokens in text.T:
        log_q = log_probability(walk.logits(before), vocabulary.row(tokens), temperature)
        parts.append(log_q.where(vocabulary.holds(tokens), -torch.inf))
        before = tokens
    return torch.stack(parts, 1)
