"""Speculative decoding writes what plain greedy decoding writes, whatever the draft proposes; a planted difference is reported."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.unit.decode.drafters import Scripted
from tests.unit.tiny import LAYERS, NEVER, VOCABULARY, B, answered, lively, overfit, random_prompt, write_target
from torchspec.acceptance.walk import Acceptance
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.decode.sequence import first_difference, plain_decode, speculative_decode, speculative_steps, token_texts
from torchspec.decode.texts import WHOLE

PROMPT = random_prompt(7, 9)


@pytest.fixture(scope="module")
def plain(tiny_oracle) -> list[int]:
    ids = plain_decode(tiny_oracle, PROMPT, 61, NEVER).ids
    assert len(set(ids)) > 15  # text that repeats itself would hide a shifted cache
    return ids


def test_plain_decoding_is_the_argmax_of_one_forward_over_its_own_text(tiny_oracle, plain):
    ids = torch.cat((PROMPT, torch.tensor(plain)))
    assert tiny_oracle.model(input_ids=ids[None]).logits[0, len(PROMPT) - 1 : -1].argmax(-1).tolist() == plain


DRAFTS = {
    "always right": lambda step, k: False,
    "always wrong": lambda step, k: True,
    "wrong in the first slot": lambda step, k: k == 1,
    "wrong in the last slot": lambda step, k: k == B - 1,
    "wrong in another slot each time": lambda step, k: k == 1 + step % (B - 1),
    "right behind a wrong one": lambda step, k: k == 2,
    "right every other time": lambda step, k: step % 2 == 1,
}


@pytest.mark.parametrize("name", DRAFTS)
def test_output_is_plain_output_for_every_kind_of_draft(tiny_oracle, plain, name):
    answer = speculative_decode(tiny_oracle, Scripted(PROMPT, plain, DRAFTS[name]), PROMPT, len(plain), NEVER)
    assert answer.ids == plain
    expected, length, step = [], 1, 0
    while length < len(plain):
        right = next((k - 1 for k in range(1, B) if DRAFTS[name](step, k)), B - 1)
        expected.append(right)
        length, step = length + right + 1, step + 1
    assert answer.accepted[:-1] == expected[:-1] and len(answer.accepted) == len(expected)  # the last block may run off the answer


@pytest.mark.parametrize(("wrong", "tau"), [(False, B), (True, 1.0)])
def test_tau_is_the_block_size_for_a_perfect_draft_and_one_for_a_useless_one(tiny_oracle, plain, wrong, tau):
    answer = speculative_decode(tiny_oracle, Scripted(PROMPT, plain, lambda step, k: wrong), PROMPT, 1 + 15 * B, NEVER)
    assert len(answer.ids) == 1 + 15 * B
    assert Acceptance(B).add_answer(answer.accepted, len(answer.ids)).tau == tau


@pytest.mark.parametrize("block_size", [2, 3, 8, 16])
def test_blocks_of_every_size_are_lossless(tiny_oracle, plain, block_size):
    drafter = Scripted(PROMPT, plain, lambda step, k: k == 1 + (step * 5) % block_size, block_size)
    assert speculative_decode(tiny_oracle, drafter, PROMPT, len(plain), NEVER).ids == plain


def test_the_draft_is_given_every_committed_token_with_its_features_and_no_other(tiny_oracle, plain):
    """The rejected rows of a verification and the bonus token, which has no state yet, must not reach the draft."""
    drafter = Scripted(PROMPT, plain, DRAFTS["wrong in another slot each time"])
    answer = speculative_decode(tiny_oracle, drafter, PROMPT, 40, NEVER)
    context = torch.cat(drafter.rows)
    sequence = torch.cat((PROMPT, torch.tensor(plain)))[: len(context)]
    assert len(PROMPT) + 36 <= len(context) <= len(PROMPT) + len(answer.ids) + B
    assert torch.equal(torch.cat(drafter.ids), sequence)
    torch.testing.assert_close(context, tiny_oracle.features(sequence[None])[0], rtol=1e-4, atol=1e-4)  # float32, other shapes


@pytest.mark.parametrize("cap", range(1, 2 * B + 3))
def test_the_cap_holds_inside_a_block(tiny_oracle, plain, cap):
    answer = speculative_decode(tiny_oracle, Scripted(PROMPT, plain), PROMPT, cap, NEVER)
    assert answer.ids == plain[:cap] == plain_decode(tiny_oracle, PROMPT, cap, NEVER).ids
    assert len(answer.from_draft) == cap


@pytest.mark.parametrize("position", range(2 * B + 2))
@pytest.mark.parametrize("name", ["always right", "always wrong", "wrong in the last slot"])
def test_decoding_ends_with_the_first_stop_token_wherever_in_a_block_it_falls(tiny_oracle, plain, position, name):
    stop, end = {plain[position], VOCABULARY + 5}, plain.index(plain[position]) + 1
    answer = speculative_decode(tiny_oracle, Scripted(PROMPT, plain, DRAFTS[name]), PROMPT, 40, stop)
    assert answer.ids == plain[:end] == plain_decode(tiny_oracle, PROMPT, 40, stop).ids
    assert len(answer.from_draft) == end


def test_tokens_are_marked_by_who_wrote_them(tiny_oracle, plain):
    """Slot 2 of each block is wrong: a step commits one drafted token and the target's own; the first token is the prefill's."""
    answer = speculative_decode(tiny_oracle, Scripted(PROMPT, plain, lambda step, k: k == 2), PROMPT, 9, NEVER)
    assert answer.accepted == [1, 1, 1, 1] and answer.from_draft == [False] + [True, False] * 4


def test_the_answer_grows_by_each_step_and_never_takes_a_token_back(tiny_oracle, plain):
    drafter, lengths = Scripted(PROMPT, plain, DRAFTS["wrong in another slot each time"]), []
    for answer in speculative_steps(tiny_oracle, drafter, PROMPT, 30, NEVER):
        assert answer.ids == plain[: len(answer.ids)]
        lengths.append(len(answer.ids))
    assert lengths[0] == 1 and lengths[-1] == 30
    assert [b - a for a, b in zip(lengths, lengths[1:], strict=False)][:-1] == [n + 1 for n in answer.accepted[:-1]]


@pytest.mark.parametrize("seed", range(4))
def test_a_real_draft_is_lossless_untrained_and_trained(tiny_method, tiny_oracle, seed):
    prompt = random_prompt(seed, 6 + seed)
    sample = answered(tiny_oracle, prompt, 40)
    model = lively(tiny_method.skeleton(), seed) if seed % 2 else tiny_method.build(torch.Generator().manual_seed(seed))
    if seed >= 2:
        overfit(tiny_method, model, [tiny_oracle.capture(sample)], 30)
    answer = speculative_decode(tiny_oracle, tiny_method.drafter(model), prompt, 40, NEVER)
    assert answer.ids == sample.ids[len(prompt) :].tolist()
    assert seed < 2 or max(answer.accepted) > 0


def test_a_drafter_is_reused_for_the_next_prompt(tiny_method, tiny_oracle):
    drafter = tiny_method.drafter(lively(tiny_method.skeleton()))
    first = [speculative_decode(tiny_oracle, drafter, random_prompt(s, 8), 20, NEVER) for s in (0, 1, 0)]
    assert first[0].ids == first[2].ids != first[1].ids and first[0].accepted == first[2].accepted


def test_a_target_with_a_sliding_window_decodes_losslessly_beyond_it(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=16, head_dim=8, initializer_range=0.3, dtype="float32",
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    oracle = HFCapture(CaptureSpec(tmp_path, LAYERS, torch.float32))
    expected = plain_decode(oracle, PROMPT, 40, NEVER).ids
    drafter = Scripted(PROMPT, expected, DRAFTS["wrong in another slot each time"])
    assert speculative_decode(oracle, drafter, PROMPT, 40, NEVER).ids == expected


# --- the proof


def test_no_difference_is_none(tiny_oracle, plain):
    assert first_difference(tiny_oracle, PROMPT, plain[:20], list(plain[:20])) is None


@pytest.mark.parametrize("position", [0, 1, 8, 19])
def test_a_planted_token_is_found_where_it_is_with_its_gap_and_is_no_tie(tiny_oracle, plain, position):
    planted = [*plain[:position], (plain[position] + 1) % VOCABULARY, *plain[position + 1 : 20]]
    difference = first_difference(tiny_oracle, PROMPT, plain[:20], planted)
    ids = torch.cat((PROMPT, torch.tensor(plain[:position], dtype=torch.int64)))
    logits = tiny_oracle.model(input_ids=ids[None]).logits[0, -1]
    assert difference.position == position and not difference.tie
    assert difference.gap == pytest.approx(float(logits.max() - logits[planted[position]]), rel=1e-4)


@pytest.mark.parametrize(("ours", "theirs"), [(20, 19), (19, 20)])
def test_an_answer_that_ends_early_is_no_tie(tiny_oracle, plain, ours, theirs):
    difference = first_difference(tiny_oracle, PROMPT, plain[:ours], plain[:theirs])
    assert difference.position == 19 and not difference.tie


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A target whose head has equal rows for tokens 2n and 2n+1, so that every choice is tied; in both precisions."""
    folder = write_target(tmp_path_factory.mktemp("twins") / "target")
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[1::2] = model.lm_head.weight[::2]
    model.save_pretrained(folder)
    return {dtype: HFCapture(CaptureSpec(folder, LAYERS, dtype)) for dtype in (torch.bfloat16, torch.float32)}


def test_equal_logits_are_a_tie_in_bfloat16_and_a_mismatch_in_float32(twins):
    for dtype, oracle in twins.items():
        answer = plain_decode(oracle, PROMPT, 10, NEVER).ids
        other = [*answer[:6], answer[6] ^ 1, *answer[7:]]
        difference = first_difference(oracle, PROMPT, answer, other)
        assert (difference.position, difference.gap) == (6, 0.0)
        assert difference.tie == (dtype == torch.bfloat16)


def test_a_clear_gap_is_no_tie_in_bfloat16(twins):
    oracle = twins[torch.bfloat16]
    answer = plain_decode(oracle, PROMPT, 10, NEVER).ids
    logits, _ = oracle.step(torch.cat((PROMPT, torch.tensor(answer[:6]))), oracle.new_cache(), logits_to_keep=1)
    worst = int(logits[0].argmin())
    difference = first_difference(oracle, PROMPT, answer, [*answer[:6], worst, *answer[7:]])
    assert not difference.tie and difference.gap > 1


# --- texts and stop tokens


def test_token_texts_add_up_to_the_text_and_split_no_character(small_folder):
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    for text in ("The sky is blue.", "naïve café – 東京 is 🥳🥳 fun!\n\n  x = 1", "🧑‍🚀", ""):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        pieces = token_texts(tokenizer, ids)
        assert len(pieces) == len(ids) and "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_the_text_of_a_token_costs_the_same_wherever_it_stands(small_folder):
    """Counted: tokens that are decoded to show one more, of a text with characters of several tokens."""
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    ids, most, decode = tokenizer("東京 is 🧑‍🚀 fun, " * 100, add_special_tokens=False).input_ids, 0, tokenizer.decode

    def counted(tokens: list[int]) -> str:
        nonlocal most
        most = max(most, len(tokens))
        return decode(tokens)

    tokenizer.decode = counted
    assert "".join(token_texts(tokenizer, ids)) == decode(ids) and most <= 2 * WHOLE


def test_bytes_that_are_no_character_are_shown_and_do_not_pile_up(small_folder):
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    byte = tokenizer.convert_tokens_to_ids("\u0122")  # 0x80, which continues a character that never began
    assert "".join(token_texts(tokenizer, [byte] * 80)) == "\ufffd" * 80


def test_the_time_between_two_steps_is_no_time_of_decoding(tiny_oracle, plain, monkeypatch):
    """A clock that only the reader of the steps moves stands still for the answer; one that every look moves counts each step once."""
    now = 0.0
    monkeypatch.setattr("torchspec.decode.sequence.time.perf_counter", lambda: now)
    for answer in speculative_steps(tiny_oracle, Scripted(PROMPT, plain), PROMPT, len(plain), NEVER):  # noqa: B007
        now += 1.0
    assert answer.seconds == 0.0 and answer.ids == plain

    def ticking() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr("torchspec.decode.sequence.time.perf_counter", ticking)
    answer = speculative_decode(tiny_oracle, Scripted(PROMPT, plain), PROMPT, len(plain), NEVER)
    assert answer.seconds == 1 + len(answer.accepted)
    assert answer.times == [1.0] + [1.0 + step for step, more in enumerate(answer.accepted, 1) for _ in range(more + 1)][: len(plain) - 1]
    now = 0.0
    assert plain_decode(tiny_oracle, PROMPT, 9, NEVER).times == [float(token) for token in range(1, 10)]


def test_a_rate_counts_the_tokens_after_the_prefill(tiny_oracle):
    answer = replace(plain_decode(tiny_oracle, PROMPT, 9, NEVER), seconds=2.0)
    assert answer.tokens_per_second == 4.0 and replace(answer, seconds=0.0).tokens_per_second == 0.0
