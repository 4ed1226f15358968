"""Offline tau at a temperature above 0: expected counts, exact for text that the target itself sampled at that temperature.

Speculative sampling commits text x with the target's law whatever is accepted. Given x, and that a step after anchor i has
accepted k-1 drafts, token x_{i+k} is the draft's own, accepted, with probability

    q_k(x_{i+k}) min(1, p / q_k) / p  =  min(1, q_k(x_{i+k}) / p(x_{i+k})),      p = p(x_{i+k} | all before),

independently of all that follows. So, given x, decoding is a Markov chain over anchors: the probability that it visits an
anchor follows from those before, and steps are the sum of these probabilities. Where all of them are 0 or 1, as in greedy
decoding, the chain is the walk of walk.py.
"""

import torch
from torch import Tensor

from torchspec.acceptance.walk import Acceptance


def add_expected(total: Acceptance, accept: Tensor) -> None:
    """Tallies the expected counts of one answer of n + 1 tokens from its acceptance probabilities [n, B-1], 0 beyond its end."""
    n, size = len(accept), total.block_size
    reach = torch.cat((torch.ones(n, 1), accept), dim=1).double().cumprod(1)  # [n, B] k drafts or more are accepted, k = 0..B-1
    exactly = reach - torch.cat((reach[:, 1:], torch.zeros(n, 1)), dim=1)  # [n, B] k drafts, so that k + 1 tokens are committed
    visited = visits(exactly)
    left = n - torch.arange(n)[:, None]  # [n, 1] tokens after each anchor
    committed = torch.arange(1, size + 1).minimum(left)  # [n, B]
    histogram = torch.zeros(size + 1, dtype=torch.float64).index_add(0, committed.flatten(), (visited[:, None] * exactly).flatten())
    offered = visited @ (torch.arange(size) <= left).double()
    steps = float(visited.sum())
    total.steps, total.tokens = total.steps + steps, total.tokens + n
    total.answered(n, steps)
    total.histogram = _sum(total.histogram, histogram)
    total.accepted[1:], total.offered[1:] = _sum(total.accepted[1:], (visited @ reach)[1:]), _sum(total.offered[1:], offered[1:])


def _sum(counts: list[float], expected: Tensor) -> list[float]:
    return [a + b for a, b in zip(counts, expected.tolist(), strict=True)]


def visits(exactly: Tensor) -> Tensor:
    """exactly [n, B]: P(a step after anchor i commits k + 1 tokens) -> P(decoding visits anchor i) [n]."""
    n, size = exactly.shape
    visited = torch.zeros(n, dtype=exactly.dtype)
    visited[0] = 1
    for i in range(n - 1):
        ahead = min(size, n - 1 - i)
        visited[i + 1 : i + 1 + ahead] += visited[i] * exactly[i, :ahead]
    return visited
