"""Targets with recurrent or convolution states: cached steps are the whole text's forward, and rejected drafts leave no trace."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.unit.decode.drafters import Scripted
from tests.unit.decode.hybrids import FAMILIES, ONE_BY_ONE, write_hybrid
from tests.unit.tiny import NEVER, B, random_prompt
from torchspec.acceptance.sampling import GREEDY, log_probability
from torchspec.acceptance.walk import walk
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.decode import offline
from torchspec.decode.batch import plain_together
from torchspec.decode.sequence import first_difference, plain_decode, speculative_decode
from torchspec.errors import UserError
from torchspec.evaluate import break_even
from torchspec.records import Prompt
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.turns import Sampling, Turns

LENGTHS = (1, 10)
MOST = 16


@dataclass
class Known:
    """A target, and what it writes behind each prompt."""

    oracle: HFCapture
    plain: dict[int, list[int]]


@pytest.fixture(scope="module", params=FAMILIES)
def known(request, tmp_path_factory) -> Known:
    oracle = HFCapture(CaptureSpec(write_hybrid(request.param, tmp_path_factory.mktemp(request.param)), (0, 2), torch.float32))
    return Known(oracle, {n: plain_decode(oracle, random_prompt(n, n), MOST, NEVER).ids for n in LENGTHS})


def whole_logits(oracle: HFCapture, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return oracle.model(input_ids=ids[None], use_cache=False).logits[0]


def close(ours: Tensor, reference: Tensor) -> None:
    """float32: 1e-4 of what the values vary by; deltas of a random model are not well conditioned, so single tokens may lose a digit."""
    error = (ours - reference).abs() / reference.std()
    assert error.mean() < 1e-4 and error.max() < 2e-3


def test_cached_steps_yield_the_logits_and_features_of_one_forward(known):
    """Read whole, token by token, and in pieces, after prompts shorter and longer than a convolution."""
    ids, oracle = random_prompt(0, 20), known.oracle
    whole, features = whole_logits(oracle, ids), oracle.features(ids[None])[0]
    for pieces in ([1] * 6 + [14], [2, 1, 4, 13], [12, 5, 3]):
        cache = oracle.new_cache()
        rows = [oracle.step(part, cache) for part in ids.split(pieces)]
        close(torch.cat([logits for logits, _ in rows]), whole)
        close(torch.cat([context for _, context in rows]), features)


def test_plain_decoding_is_the_argmax_of_one_forward_over_its_own_text(known):
    for n, plain in known.plain.items():
        ids = torch.cat((random_prompt(n, n), torch.tensor(plain)))
        assert whole_logits(known.oracle, ids)[n - 1 : -1].argmax(-1).tolist() == plain
    assert max(len(set(plain)) for plain in known.plain.values()) > 6  # text that repeats itself would hide a stale state


def test_speculative_decoding_writes_what_plain_decoding_writes(known):
    """Of four steps one accepts nothing, one accepts all, and two are wrong in between."""
    for n, plain in known.plain.items():
        drafter, prompt = Scripted(random_prompt(n, n), plain, lambda step, k: k == 1 + step % B), random_prompt(n, n)
        answer = speculative_decode(known.oracle, drafter, prompt, MOST, NEVER)
        assert answer.ids == plain and first_difference(known.oracle, prompt, plain, answer.ids) is None
        context = torch.cat(drafter.rows)
        close(context, known.oracle.features(torch.cat((prompt, torch.tensor(plain)))[None, : len(context)])[0])


def test_the_offline_walk_counts_what_decoding_accepts(known):
    """A draft that knows the text, but for a slot that depends on the anchor: it accepts the same wherever steps begin."""
    n, plain = LENGTHS[-1], known.plain[LENGTHS[-1]]

    class ByAnchor(Scripted):
        def propose(self, last_token, sampler=GREEDY):
            at = sum(map(len, self.rows)) - len(self.prompt)
            self.wrong = lambda step, k: k == 1 + at % B
            return super().propose(last_token, sampler)

    right = [min(anchor % B, B - 1, MOST - 1 - anchor) for anchor in range(MOST - 1)]
    answer = speculative_decode(known.oracle, ByAnchor(random_prompt(n, n), plain), random_prompt(n, n), MOST, NEVER)
    counted = walk(right)
    assert answer.accepted[:-1] == counted[:-1] and len(answer.accepted) == len(counted)  # the last block may run off the answer


def test_a_text_read_in_parts_is_the_text_read_whole(known, monkeypatch):
    monkeypatch.setattr(offline, "READ_TOKENS", 7)
    ids = random_prompt(5, 24)
    features, log_p = offline.read(known.oracle, Prompt(0, ids, torch.arange(24) > 8), 0.7)
    close(features.context, known.oracle.features(ids[None])[0])
    close(log_p[1:], log_probability(whole_logits(known.oracle, ids)[:-1], ids[1:], 0.7))


def test_what_is_kept_of_a_verification_without_its_states_is_another_text(known):
    """The planted bug: rows of keys are cropped, states stay as the rejected tokens left them."""
    ids, wrong, oracle = random_prompt(0, 16), random_prompt(1, 5), known.oracle
    truth, draft = whole_logits(oracle, ids)[-4:], torch.cat((ids[11:12], wrong))

    def after(take_back) -> Tensor:
        cache = oracle.new_cache()
        oracle.step(ids[:11], cache)
        before = oracle.states(cache)
        oracle.step(draft, cache)
        take_back(cache, before)
        return oracle.step(ids[12:], cache)[0]

    def crop_keys_alone(cache, _before) -> None:
        oracle.forget(cache, oracle.states(cache), len(wrong))

    close(after(lambda cache, before: oracle.take_back(draft, cache, before, 1)), truth)
    with pytest.raises(AssertionError):
        close(after(crop_keys_alone), truth)


def test_how_it_reads_on_is_measured(known):
    assert known.oracle.recurrent.at_once == (known.oracle.model.config.model_type not in ONE_BY_ONE)


def test_prompts_are_not_decoded_together(known):
    with pytest.raises(UserError, match="--batch-size above 1 .* this target has recurrent or convolution states; use --batch-size 1"):
        plain_together(known.oracle, [random_prompt(0, 4), random_prompt(1, 6)], 4, NEVER, [GREEDY, GREEDY])


def test_answers_regenerated_in_a_batch_are_those_of_each_prompt(known):
    """Left-padded prompts of different length: padding must leave no trace in a state."""
    tokenizer = SimpleNamespace(pad_token_id=0, name_or_path=str(known.oracle.spec.folder))
    turns = Turns(SimpleNamespace(tokenizer=tokenizer, stop_ids=set()), Sampling(MOST, (0.0,), 0))
    regenerator = Regenerator(turns, known.oracle.model, len(LENGTHS))
    assert regenerator.generate([random_prompt(n, n).tolist() for n in LENGTHS], 0.0, 0) == list(known.plain.values())


@pytest.mark.parametrize("known", ["qwen3_5_text", "jamba"], indirect=True)
def test_the_cost_of_a_verification_is_measured_from_the_same_states_each_time(known, monkeypatch):
    """Of every size, for two sequences: Transformers' own ways to repeat and to crop a cache end in an error where it has states."""
    monkeypatch.setattr(break_even, "CONTEXT", 20)
    pair = SimpleNamespace(target=known.oracle, method=SimpleNamespace(block_size=3))
    forward = break_even.forwards(pair, concurrency=2)
    assert all(forward(rows) > 0 for _ in range(3) for rows in (1, 2, 3))


@pytest.mark.parametrize(("family", "why"), [("minimax", "cache of its own"), ("recurrent_gemma", "does not forget rejected tokens")])
def test_a_target_that_cannot_be_rolled_back_is_refused(tmp_path, family, why):
    with pytest.raises(UserError, match=why):
        HFCapture(CaptureSpec(write_hybrid(family, tmp_path), (0, 2), torch.float32)).new_cache()
