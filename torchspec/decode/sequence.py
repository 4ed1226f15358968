"""Decoding of the target, plain and speculative, one prompt at a time; and the proof that both write the same tokens when greedy."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from torchspec.acceptance.sampling import GREEDY, Sampler
from torchspec.capture.hf import HFCapture
from torchspec.chat import stops
from torchspec.decode.texts import Texts
from torchspec.methods.base import Drafter


@dataclass
class Answer:
    ids: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)  # per step: draft tokens that the verification accepted
    drafted: list[int] = field(default_factory=list)  # per step: draft tokens that were proposed
    from_draft: list[bool] = field(default_factory=list)  # per token: proposed by the draft, or the target's own (first and bonus tokens)
    times: list[float] = field(default_factory=list)  # per token of a prompt that is decoded alone: seconds from the prefill until it stood
    seconds: float = 0.0  # decoding after the prefill

    @property
    def tokens_per_second(self) -> float:
        return (len(self.ids) - 1) / self.seconds if self.seconds else 0.0


def stop_ids(target: HFCapture) -> set[int]:
    """Where servers end this target's answers, and where decoding here does."""
    folder, trust = target.spec.folder, target.spec.trust_remote_code
    return set(stops.stop_ids(folder, AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)))


def plain_decode(target: HFCapture, prompt: Tensor, max_new_tokens: int, stop: set[int], sampler: Sampler = GREEDY) -> Answer:
    """The reference: one target forward per token. prompt [L]."""
    cache, answer = target.new_cache(), Answer()
    logits, _ = target.step(prompt, cache, logits_to_keep=1)
    started = time.perf_counter()
    answer.ids.append(next_token(logits, sampler))
    answer.times.append(time.perf_counter() - started)
    while not ended(answer, max_new_tokens, stop):
        logits, _ = target.step(torch.tensor(answer.ids[-1:]), cache)
        answer.ids.append(next_token(logits, sampler))
        answer.times.append(time.perf_counter() - started)
    answer.seconds = answer.times[-1]
    return answer


def ended(answer: Answer, max_new_tokens: int, stop: set[int]) -> bool:
    return answer.ids[-1] in stop or len(answer.ids) >= max_new_tokens


def next_token(logits: Tensor, sampler: Sampler) -> int:
    """The token after the last of these rows, [r, V]."""
    return int(sampler.choose(logits[-1:])[0])


def speculative_decode(
    target: HFCapture, drafter: Drafter, prompt: Tensor, max_new_tokens: int, stop: set[int], sampler: Sampler = GREEDY
) -> Answer:
    answer = Answer()
    for answer in speculative_steps(target, drafter, prompt, max_new_tokens, stop, sampler):  # noqa: B007 - the last state is the result
        pass
    return answer


@torch.inference_mode()
def speculative_steps(
    target: HFCapture, drafter: Drafter, prompt: Tensor, max_new_tokens: int, stop: set[int], sampler: Sampler = GREEDY
) -> Iterator[Answer]:
    """Yields the growing answer after the prefill and after every verification.

    Each step verifies [last token, up to B-1 drafts] in one target forward, commits the drafts up to the first that is rejected
    (greedy: that differs from the target's choice), and the target's own token there (the bonus token). What was rejected is
    taken back from the target's cache.
    """
    cache, answer = target.new_cache(), Answer()
    drafter.reset()
    logits, context = target.step(prompt, cache, logits_to_keep=1)
    started = time.perf_counter()
    drafter.extend(prompt, context)
    answer.ids.append(next_token(logits, sampler))
    answer.from_draft.append(False)
    answer.seconds = time.perf_counter() - started
    answer.times.append(answer.seconds)
    yield answer
    while not ended(answer, max_new_tokens, stop):
        started = time.perf_counter()  # anew: what is done with an answer between two steps, as printing it, is no part of decoding
        last = answer.ids[-1]
        drafts, q = drafter.propose(last, sampler)
        verified = torch.cat((drafts.new_tensor([last]), drafts))
        before = target.states(cache)
        logits, context = target.step(verified, cache)
        accepted, bonus = sampler.verify(drafts, q, logits)
        if accepted < len(drafts):
            target.take_back(verified, cache, before, accepted + 1)
        drafter.extend(verified[: accepted + 1], context[: accepted + 1])
        commit(answer, len(drafts), [*drafts[:accepted].tolist(), bonus], max_new_tokens, stop)
        answer.seconds += time.perf_counter() - started
        answer.times += [answer.seconds] * (len(answer.ids) - len(answer.times))
        yield answer


def commit(answer: Answer, drafted: int, tokens: list[int], max_new_tokens: int, stop: set[int]) -> None:
    """Appends the accepted ones of so many drafts and the bonus token of one verification, up to a stop token or the cap."""
    accepted = len(tokens) - 1
    answer.drafted.append(drafted)
    committed = _until_stop(tokens, stop)[: max_new_tokens - len(answer.ids)]
    answer.accepted.append(accepted)
    answer.from_draft += [i < accepted for i in range(len(committed))]
    answer.ids += committed


def _until_stop(tokens: list[int], stop: set[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))
    return tokens[:end]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The text that each token adds."""
    texts = Texts(tokenizer)
    return [texts.add(token) for token in ids]


@dataclass(frozen=True)
class Difference:
    """First token at which two answers part, with the target's own logits there."""

    position: int
    gap: float  # between the two tokens' logits when the target decodes token by token
    tie: bool  # explained by bfloat16 rounding


def first_difference(target: HFCapture, prompt: Tensor, plain: list[int], speculative: list[int]) -> Difference | None:
    """None if the answers are token-identical. In float32 no difference is a tie.

    In bfloat16 a product of one row and of several rounds differently, in every layer. By how much is measured on the spot: the largest
    difference of any logit between the text read token by token and read whole, and no less than one unit of the last place, 2^-7 of
    the power of two below the logit. Two logits closer than two such differences have no defined order.
    """
    if plain == speculative:
        return None
    position = next(i for i, (a, b) in enumerate(zip(plain + [-1], speculative + [-1], strict=False)) if a != b)
    if position >= min(len(plain), len(speculative)):
        return Difference(position, float("inf"), tie=False)
    cache = target.new_cache()
    logits, _ = target.step(prompt, cache, logits_to_keep=1)
    for token in plain[:position]:
        logits, _ = target.step(torch.tensor([token]), cache)
    whole, _ = target.step(torch.cat((prompt, torch.tensor(plain[:position], dtype=prompt.dtype))), target.new_cache(), logits_to_keep=1)
    logits, whole = logits[-1], whole[-1].float()
    ours, theirs = float(logits[plain[position]]), float(logits[speculative[position]])
    unit = 2.0 ** (torch.tensor(abs(ours)).log2().floor().item() - 7)
    rounding, gap = max(unit, float((logits.float() - whole).abs().max())), abs(ours - theirs)
    return Difference(position, gap, tie=logits.dtype == torch.bfloat16 and gap <= 2 * rounding)
