"""Offline tau at a temperature above 0: expected counts, exact for text that the target itself sampled at that temperature.

Speculative sampling commits text x with the target's law whatever is accepted. Given x, and that a step after anchor i has
accepted k-1 drafts, token x_{i+k} is the draft's own, accepted, with probability

    q_k(x_{i+k}) min(1, p / q_k) / p  =  min(1, q_k(x_{i+k}) / p(x_{i+k})),      p = p(x_{i+k} | all before),

independently of all that follows. So, given x, decoding is a Markov chain over anchors: the probability that it visits an
anchor follows from those before, and steps are the sum of these probabilities. Where all of them are 0 or 1, as in greedy
decoding, the chain is the walk of acceptance.py.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from torchspec.capture.hf import HFCapture
from torchspec.evaluate.acceptance import Acceptance
from torchspec.evaluate.sampling import log_probability
from torchspec.methods.base import Method
from torchspec.records import Features, Prompt

READ_TOKENS = 512  # per target forward: bounds the logits


def evaluate_expected(method: Method, model: Callable, target: HFCapture, prompts: Iterable[Prompt], temperature: float) -> Acceptance:
    """Expected counts of decoding the prompts' answers, which the target sampled at this temperature (> 0)."""
    total = Acceptance(method.block_size)
    for prompt in prompts:
        for accept in acceptance_probabilities(method, model, target, prompt, temperature):
            add_expected(total, accept)
    return total


@torch.inference_mode()
def acceptance_probabilities(method: Method, model: Callable, target: HFCapture, prompt: Prompt, temperature: float) -> list[Tensor]:
    """For each answer of n + 1 tokens, [n, B-1]: P(draft token k after answer token i is accepted, if those before it were)."""
    features, log_p = read(target, prompt, temperature)
    device, answers = log_p.device, []
    for start, end in prompt.spans():
        anchors = torch.arange(start, end - 1, device=device)
        if len(anchors) == 0:
            continue
        log_q = method.text_log_probabilities(model, features, anchors, temperature)  # [n, B-1]
        position = anchors[:, None] + torch.arange(1, method.block_size, device=device)
        ratio = (log_q - log_p[position.clamp(max=end - 1)]).clamp(max=0).exp()
        answers.append(ratio.where(position < end, 0.0).cpu())
    return answers


def read(target: HFCapture, prompt: Prompt, temperature: float) -> tuple[Features, Tensor]:
    """One pass of the target over a text: its features, and log p(x_t | all before) [L], for t = 0 without meaning."""
    ids, cache = prompt.ids.to(target.device), target.new_cache()
    contexts, log_p = [], []
    for part, after in zip(ids.split(READ_TOKENS), ids.roll(-1).split(READ_TOKENS), strict=True):
        logits, context = target.step(part, cache)
        contexts.append(context)
        log_p.append(log_probability(logits, after, temperature))
    on_device = Prompt(prompt.index, ids, prompt.loss_mask)
    return Features(on_device, torch.cat(contexts), target.layer_ids, target.producer), torch.cat(log_p).roll(1)


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
    total.answers.append((n, steps))
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
