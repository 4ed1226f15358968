"""Offline tau: draft and target read a text that the target wrote, and what decoding it would have accepted is counted, not decoded."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from torchspec.acceptance.expected import add_expected
from torchspec.acceptance.sampling import log_probability
from torchspec.acceptance.walk import Acceptance, walk
from torchspec.capture.base import Capture
from torchspec.capture.hf import HFCapture
from torchspec.methods.base import Method
from torchspec.records import Features, Prompt

READ_TOKENS = 512  # per target forward: bounds the logits


@torch.inference_mode()
def right_drafts(method: Method, model: Callable, features: Features) -> list[Tensor]:
    """For each answer of n tokens of the sample: how many drafts after each of its anchors are the text's own, [n - 1]."""
    device, answers = features.context.device, []
    for start, end in features.prompt.spans():
        anchors = torch.arange(start, end - 1, device=device)
        if len(anchors) > 0:
            answers.append(method.matches(model, features, anchors).minimum(end - 1 - anchors))  # none beyond the answer's end
    return answers


def accepted_per_step(method: Method, model: Callable, features: Features) -> list[tuple[list[int], int]]:
    """For each answer of the sample: accepted drafts of each decoding step, and the answer's length."""
    return [(walk(right.tolist()), len(right) + 1) for right in right_drafts(method, model, features)]


def evaluate_offline(method: Method, model: Callable, capture: Capture, prompts: Iterable[Prompt]) -> Acceptance:
    return evaluate_anchors(method, model, capture, prompts)[0]


def evaluate_anchors(method: Method, model: Callable, capture: Capture, prompts: Iterable[Prompt]) -> tuple[Acceptance, Tensor]:
    """The walk's counts, and [2]: right drafts plus one, summed over every anchor, and the number of anchors: block_tau of these texts."""
    total, every_anchor = Acceptance(method.block_size), torch.zeros(2, dtype=torch.float64)
    for prompt in prompts:
        features = capture.capture(prompt)
        on_device = Features(
            Prompt(prompt.index, prompt.ids.to(features.context.device), prompt.loss_mask),
            features.context,
            features.layer_ids,
            features.producer,
        )
        for right in right_drafts(method, model, on_device):
            total.add_answer(walk(right.tolist()), len(right) + 1)
            every_anchor += torch.tensor([float(right.sum()) + len(right), len(right)])
    return total, every_anchor


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
