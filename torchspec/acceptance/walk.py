"""Acceptance length tau: tokens committed per target forward, bonus token included; plain decoding is 1.0. The prefill does not count.

Offline tau is exact for greedy decoding of text that the target wrote: the target's choice at every position is already
known, so one parallel pass proposes after all anchors, and a walk visits the anchors that decoding would visit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from torchspec.acceptance.interval import tau_interval


@dataclass
class Acceptance:
    """Counts that add up over answers, or expected counts (expected.py). B = most tokens committed per step; slots are 1..B-1."""

    block_size: int
    steps: float = 0  # target forwards, prefill excluded
    tokens: int = 0  # tokens those forwards committed

    def __post_init__(self):
        self.histogram = [0] * (self.block_size + 1)  # [committed] -> steps
        self.accepted = [0] * self.block_size  # [k] -> steps whose draft token k was accepted; k = 0 is unused
        self.offered = [0] * self.block_size  # [k] -> steps that proposed a token for slot k, and whose answer still had one
        self.moments = [0, 0, 0, 0]  # of the answers: how many, and sums of tokens², tokens * steps and steps²

    @property
    def tau(self) -> float:
        return self.tokens / self.steps if self.steps else 1.0

    @property
    def slot_rates(self) -> list[float]:
        """P(draft token k is accepted), k = 1..B-1, of those that were proposed; a rejected earlier token counts as rejection."""
        return [a / o if o else 0.0 for a, o in zip(self.accepted[1:], self.offered[1:], strict=True)]

    def add_answer(self, accepted: Iterable[int], length: int, drafted: Iterable[int] | None = None) -> "Acceptance":
        """Tallies one answer of `length` tokens from the number of accepted drafts of each step; the first token came from the prefill.

        drafted: proposals of each step; none: B-1 at every one.
        """
        remaining, before = length - 1, self.steps
        for count, proposed in zip(accepted, repeat(self.block_size - 1) if drafted is None else drafted, strict=False):
            count = min(count, remaining)
            committed = min(count + 1, remaining)
            self.steps, self.tokens = self.steps + 1, self.tokens + committed
            self.histogram[committed] += 1
            for slot in range(1, min(proposed, remaining) + 1):
                self.offered[slot] += 1
                self.accepted[slot] += slot <= count
            remaining -= committed
        self.answered(length - 1, self.steps - before)
        return self

    def answered(self, tokens: int, steps: float) -> None:
        """One more answer is tallied whole."""
        self.moments = [a + b for a, b in zip(self.moments, (1, tokens * tokens, tokens * steps, steps * steps), strict=True)]

    def add(self, other: "Acceptance") -> "Acceptance":
        """Tallies what `other` has tallied, of the same block size."""
        self.steps, self.tokens = self.steps + other.steps, self.tokens + other.tokens
        pairs = ((self.moments, other.moments), (self.histogram, other.histogram))
        for mine, more in (*pairs, (self.accepted, other.accepted), (self.offered, other.offered)):
            mine[:] = [a + b for a, b in zip(mine, more, strict=True)]
        return self

    def counts(self) -> Tensor:
        """All counts in one vector, so that ranks can add theirs."""
        return torch.tensor([self.steps, self.tokens, *self.moments, *self.histogram, *self.accepted, *self.offered])

    def from_counts(self, counts: Tensor) -> "Acceptance":
        """The acceptance that `counts` describes, for the same block size."""
        total, size = Acceptance(self.block_size), self.block_size
        (total.steps, total.tokens), *rest = (part.tolist() for part in counts.split([2, 4, size + 1, size, size]))
        total.moments, total.histogram, total.accepted, total.offered = rest
        return total

    def to_json(self) -> dict:
        return {
            "tau": self.tau,
            "tau_interval": tau_interval(self.tokens, self.steps, self.moments),
            "steps": self.steps,
            "tokens": self.tokens,
            "histogram": self.histogram[1:],
            "slot_acceptance": self.slot_rates,
        }


def walk(prefix: list[int]) -> list[int]:
    """prefix[i] = right drafts after answer token i -> the same for the steps that decoding takes.

    An answer of n tokens has n - 1 anchors (nothing follows its last token); a step after i commits prefix[i] + 1 tokens.
    """
    visited, position = [], 0
    while position < len(prefix):
        visited.append(prefix[position])
        position += prefix[position] + 1
    return visited
