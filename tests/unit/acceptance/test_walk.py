"""Offline tau is decoded tau: the same steps, the same accepted drafts; and the counts add up."""

import random

import pytest
import torch

from tests.unit.tiny import NEVER, B, answered, lively, overfit, random_prompt
from torchspec.acceptance.walk import Acceptance, walk
from torchspec.decode.offline import accepted_per_step, evaluate_offline
from torchspec.decode.sequence import speculative_decode
from torchspec.records import Prompt


def decode_by_hand(right: list[list[bool]], block_size: int) -> list[int]:
    """right[i][k-1]: is the draft token k after answer token i the target's? Token by token, as a server would commit them."""
    accepted, position, last = [], 0, len(right)
    while position < last:
        count = 0
        while count < block_size - 1 and position + count < last and right[position][count]:
            count += 1
        accepted.append(count)
        position += count + 1
    return accepted


@pytest.mark.parametrize("seed", range(20))
def test_the_walk_visits_what_decoding_visits(seed):
    g = random.Random(seed)
    right = [[g.random() < seed / 19 and i + k < 30 for k in range(1, B)] for i in range(30)]
    prefix = [next((k for k, r in enumerate(row) if not r), B - 1) for row in right]
    assert walk(prefix) == decode_by_hand(right, B)


def test_the_walk_of_nothing_is_nothing():
    assert walk([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_conserved(seed):
    """Every token but the first belongs to one step, every step to one bar, every offered slot to a token still to come."""
    g = random.Random(seed)
    total, tokens, offered, right = Acceptance(B), 0, [0] * B, [0] * B
    for _ in range(30):
        length, accepted, left = g.randint(1, 40), [], 0
        left = length - 1
        while left > 0:
            count = g.randint(0, B - 1)  # the last step may accept more than the answer has room for, as decoding reports it
            accepted.append(count)
            for k in range(1, B):
                offered[k] += k <= left
                right[k] += k <= min(count, left)
            left -= count + 1
        total.add_answer(accepted, length)
        tokens += length - 1
    assert total.tokens == tokens == sum(n * steps for n, steps in enumerate(total.histogram))
    assert total.steps == sum(total.histogram) and total.histogram[0] == 0
    assert total.offered == offered and total.accepted == right
    assert total.tau == tokens / total.steps and 1 <= total.tau <= B
    assert total.slot_rates == [r / o for r, o in zip(right[1:], offered[1:], strict=True)]
    assert total.to_json()["histogram"] == total.histogram[1:]


@pytest.mark.parametrize("block_size", [2, 4, 16])
def test_tau_is_the_block_size_when_all_is_right_and_one_when_nothing_is(block_size):
    assert Acceptance(block_size).add_answer([block_size - 1] * 10, 1 + 10 * block_size).tau == block_size
    assert Acceptance(block_size).add_answer([0] * 10, 11).tau == 1.0
    assert Acceptance(block_size).tau == 1.0  # nothing decoded: no gain


def test_answers_add_up_in_any_order():
    answers = [([3, 0, 2], 9), ([0], 2), ([], 1), ([2, 2], 7)]
    forward, backward = Acceptance(B), Acceptance(B)
    for answer in answers:
        forward.add_answer(*answer)
    for answer in reversed(answers):
        backward.add_answer(*answer)
    assert forward.to_json() == backward.to_json() and forward.steps == 6 and forward.tokens == 8 + 1 + 0 + 6


def clipped(accepted: list[int], length: int) -> list[int]:
    """Decoding counts right drafts beyond the end of the answer; they are committed to nobody."""
    left, kept = length - 1, []
    for count in accepted:
        kept.append(min(count, left))
        left -= count + 1
    return kept


PROMPTS = [random_prompt(seed, 6 + seed) for seed in range(4)]


@pytest.fixture(scope="module")
def samples(tiny_oracle) -> list[Prompt]:
    return [answered(tiny_oracle, prompt, 45, index=i) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("training", [0, 40])
def test_offline_steps_are_the_decoders_steps(tiny_method, tiny_oracle, samples, training):
    """Several prompts, from a draft that knows nothing to one that knows two of the four answers by heart."""
    model = lively(tiny_method.skeleton()) if training == 0 else tiny_method.build(torch.Generator().manual_seed(0))
    if training:
        overfit(tiny_method, model, [tiny_oracle.capture(s) for s in samples[:2]], training)
    decoded = Acceptance(B)
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        answer = speculative_decode(tiny_oracle, tiny_method.drafter(model), prompt, 45, NEVER)
        assert accepted_per_step(tiny_method, model, tiny_oracle.capture(sample)) == [(clipped(answer.accepted, 45), 45)]
        decoded.add_answer(answer.accepted, 45)
    offline = evaluate_offline(tiny_method, model, tiny_oracle, samples)
    assert offline.to_json() == decoded.to_json()
    assert training < 40 or offline.tau > 1.3  # the comparison of two lists of zeros would prove little


def test_an_answer_that_ends_with_a_stop_token_inside_a_block_counts_the_same(tiny_method, tiny_oracle):
    prompt = random_prompt(0, 6)
    free = answered(tiny_oracle, prompt, 45)
    model = tiny_method.build(torch.Generator().manual_seed(0))
    overfit(tiny_method, model, [tiny_oracle.capture(free)], 40)
    for position in range(6, 14):
        stop = {int(free.ids[len(prompt) + position])}
        sample = answered(tiny_oracle, prompt, 45, stop)
        length = len(sample.ids) - len(prompt)
        answer = speculative_decode(tiny_oracle, tiny_method.drafter(model), prompt, 45, stop)
        offline = accepted_per_step(tiny_method, model, tiny_oracle.capture(sample))
        assert offline == ([(clipped(answer.accepted, length), length)] if length > 1 else [])


def test_each_turn_of_a_conversation_is_decoded_after_all_that_came_before(tiny_method, tiny_oracle):
    first = answered(tiny_oracle, random_prompt(0, 6), 20)
    second = answered(tiny_oracle, torch.cat((first.ids, random_prompt(1, 5))), 20)
    mask = torch.cat((first.loss_mask, second.loss_mask[len(first.ids) :]))
    model = tiny_method.build(torch.Generator().manual_seed(0))
    conversation = tiny_oracle.capture(Prompt(0, second.ids, mask))
    overfit(tiny_method, model, [conversation], 60)
    decoded = [
        clipped(speculative_decode(tiny_oracle, tiny_method.drafter(model), second.ids[:start], 20, NEVER).accepted, 20)
        for start, _ in conversation.prompt.spans()
    ]
    assert accepted_per_step(tiny_method, model, conversation) == [(steps, 20) for steps in decoded]
    assert sum(map(sum, decoded)) > 0


def test_an_answer_of_one_token_has_no_step(tiny_method, tiny_oracle):
    """The prefill writes it."""
    ids = random_prompt(0, 12)
    mask = torch.zeros(12, dtype=torch.bool)
    mask[[4, 11]] = True
    assert accepted_per_step(tiny_method, tiny_method.skeleton(), tiny_oracle.capture(Prompt(0, ids, mask))) == []


@pytest.mark.parametrize("name", ["dflash", "eagle3"])
def test_matches_are_the_proposals_compared_with_the_text(name, tiny_method, tiny_oracle, tiny_eagle3, eagle3_oracle, monkeypatch):
    """Looking at a slot only where all before it are right gives what looking at all of them gives, over several forwards too."""
    method, oracle = (tiny_method, tiny_oracle) if name == "dflash" else (tiny_eagle3, eagle3_oracle)
    monkeypatch.setattr("torchspec.methods.block.method.PROPOSAL_BLOCKS", 7)
    monkeypatch.setattr("torchspec.methods.eagle3.base.PROPOSAL_CHAINS", 7)
    features = oracle.capture(answered(oracle, random_prompt(3, 8), 40))
    model = method.build(torch.Generator().manual_seed(0))
    overfit(method, model, [features], 20)
    anchors, ids = torch.arange(7, 47), features.prompt.ids
    position = anchors[:, None] + torch.arange(1, B)
    with torch.inference_mode():
        right = method.propose(model, features, anchors) == ids[position.clamp(max=len(ids) - 1)]
        matches = method.matches(model, features, anchors)
    assert torch.equal(matches, right.cumprod(-1).sum(-1)) and 0 < int((matches > 0).sum()) < len(anchors)
