"""Decoding of N prompts together: one target forward for all of them, each sequence with its own accepted drafts, stop and sampler.

Drafters draft one sequence after another: what is shared is the target. A sequence that has ended leaves.
"""

import time

import torch
from torch import Tensor

from torchspec.acceptance.sampling import Sampler
from torchspec.capture.hf import HFCapture
from torchspec.decode.ragged import Running
from torchspec.decode.sequence import Answer, commit, ended, next_token
from torchspec.methods.base import Drafter


@torch.inference_mode()
def plain_together(target: HFCapture, prompts: list[Tensor], max_new_tokens: int, stop: set[int], samplers: list[Sampler]) -> list[Answer]:
    """The reference: one target forward per token of all sequences. prompts [L] each."""
    running, answers = Running(target, prompts, max_new_tokens), [Answer() for _ in prompts]
    started = time.perf_counter()
    for answer, (logits, _), sampler in zip(answers, running.prefilled, samplers, strict=True):
        answer.ids.append(next_token(logits, sampler))
    left = _still(running, list(range(len(prompts))), answers, max_new_tokens, stop)
    while left:
        logits, _ = running.step(torch.tensor([answers[i].ids[-1:] for i in left]))
        for i, row in zip(left, logits, strict=True):
            answers[i].ids.append(next_token(row, samplers[i]))
        running.advance([1] * len(left))
        left = _still(running, left, answers, max_new_tokens, stop)
    return _share(answers, time.perf_counter() - started)


@torch.inference_mode()
def speculative_together(
    target: HFCapture, drafters: list[Drafter], prompts: list[Tensor], max_new_tokens: int, stop: set[int], samplers: list[Sampler]
) -> list[Answer]:
    """Each sequence has a drafter and a sampler of its own, so that its answer is the one of decoding alone."""
    running, answers = Running(target, prompts, max_new_tokens + drafters[0].block_size), [Answer() for _ in prompts]
    started = time.perf_counter()
    for i, (logits, context) in enumerate(running.prefilled):
        drafters[i].reset()
        drafters[i].extend(prompts[i], context)
        answers[i].ids.append(next_token(logits, samplers[i]))
        answers[i].from_draft.append(False)
    left = _still(running, list(range(len(prompts))), answers, max_new_tokens, stop)
    while left:
        proposals = [drafters[i].propose(answers[i].ids[-1], samplers[i]) for i in left]
        verified = _together([torch.cat((d.new_tensor(answers[i].ids[-1:]), d)) for i, (d, _) in zip(left, proposals, strict=True)])
        logits, context = running.step(verified)
        kept = []
        for row, (i, (drafts, q)) in enumerate(zip(left, proposals, strict=True)):
            accepted, bonus = samplers[i].verify(drafts, q, logits[row, : len(drafts) + 1])
            drafters[i].extend(verified[row, : accepted + 1], context[row, : accepted + 1])
            commit(answers[i], len(drafts), [*drafts[:accepted].tolist(), bonus], max_new_tokens, stop)
            kept.append(accepted + 1)
        running.advance(kept)
        left = _still(running, left, answers, max_new_tokens, stop)
    return _share(answers, time.perf_counter() - started)


def _together(rows: list[Tensor]) -> Tensor:
    """Tokens of several sequences [N, n] of the longest. What stands behind a shorter one's end is verified and thrown away: the forward of
    a batch is as wide as its widest row.
    """
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _still(running: Running, left: list[int], answers: list[Answer], max_new_tokens: int, stop: set[int]) -> list[int]:
    """The sequences that go on; the others' rows leave the cache."""
    rows = [row for row, i in enumerate(left) if not ended(answers[i], max_new_tokens, stop)]
    if 0 < len(rows) < len(left):
        running.keep(rows)
    return [left[row] for row in rows]


def _share(answers: list[Answer], seconds: float) -> list[Answer]:
    """Seconds in proportion to tokens, so that the rate of every answer is the batch's: there is no other."""
    tokens = sum(len(answer.ids) - 1 for answer in answers)
    for answer in answers:
        answer.seconds = seconds * (len(answer.ids) - 1) / tokens if tokens else 0.0
    return answers
