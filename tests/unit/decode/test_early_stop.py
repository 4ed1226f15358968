"""A draft with a confidence head stops where survival gets unlikely: fewer proposals, the same text, and every count right."""

import pytest
import torch

from tests.unit.tiny import NEVER, B, answered, lively, make_dspark, make_method, random_prompt
from torchspec.acceptance.calibration import survival
from torchspec.acceptance.sampling import GREEDY, Sampler
from torchspec.acceptance.walk import Acceptance
from torchspec.decode.batch import speculative_together
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.errors import UserError

PROMPTS = [random_prompt(seed, 7 + seed) for seed in range(2)]
TOKENS = 14


@pytest.fixture(scope="module")
def method(tiny_target):
    return make_dspark(tiny_target, markov_head_type="rnn")


@pytest.fixture(scope="module")
def model(method):
    """Confidences that differ from slot to slot and are neither 0 nor 1."""
    model = lively(method.skeleton())
    with torch.no_grad():
        model.confidence_head.proj.bias.zero_()
    return model


def greedy(method, model, oracle, prompt, least: float):
    return speculative_decode(oracle, method.drafter(model, least), prompt, TOKENS, NEVER)


def test_the_text_is_the_same_and_drafts_are_spared(method, model, eagle3_oracle):
    drafted, plain = {}, [plain_decode(eagle3_oracle, prompt, TOKENS, NEVER).ids for prompt in PROMPTS]
    for least in (0.0, 0.2, 1.0):
        answers = [greedy(method, model, eagle3_oracle, prompt, least) for prompt in PROMPTS]
        assert [a.ids for a in answers] == plain
        drafted[least] = [count for a in answers for count in a.drafted]
        assert all(len(a.drafted) == len(a.accepted) and all(n >= k for n, k in zip(a.drafted, a.accepted, strict=True)) for a in answers)
    assert set(drafted[0.0]) == {B - 1} and set(drafted[1.0]) == {0} and len(set(drafted[0.2])) > 2


@torch.no_grad()
def test_it_stops_at_the_first_slot_whose_survival_is_below(method, model, eagle3_oracle):
    """As the whole document's confidences say, divided by the temperatures of the folder; other temperatures stop elsewhere."""
    features = eagle3_oracle.capture(answered(eagle3_oracle, PROMPTS[0], 24))
    ids, anchors, counts = features.prompt.ids, torch.arange(1, len(features.context)), {}
    logits, _ = method.confidences(model, features, anchors)
    for temperatures in ([1.0, 1.0, 1.0], [0.5, 3.0, 1.0]):
        method.config.dflash_config["confidence_temperatures"] = temperatures
        drafter, found = method.drafter(model, 0.3), []
        for anchor in anchors.tolist():
            drafter.extend(ids[anchor - 1 : anchor], features.context[anchor - 1 : anchor])
            found.append(len(drafter.propose(int(ids[anchor]), GREEDY)[0]))
        assert found == (survival(logits, temperatures) >= 0.3).sum(1).tolist()
        counts[tuple(temperatures)] = found
    del method.config.dflash_config["confidence_temperatures"]
    assert len({tuple(found) for found in counts.values()}) == 2 and len(set(found)) > 2


def test_at_a_temperature_a_step_without_drafts_is_plain_decoding(method, model, eagle3_oracle):
    """The same draws from the same generator; and with some drafts, laws of these alone."""
    none = speculative_decode(eagle3_oracle, method.drafter(model, 1.0), PROMPTS[0], TOKENS, NEVER, Sampler(0.9, seed=3))
    assert none.ids == plain_decode(eagle3_oracle, PROMPTS[0], TOKENS, NEVER, Sampler(0.9, seed=3)).ids
    some = speculative_decode(eagle3_oracle, method.drafter(model, 0.2), PROMPTS[0], TOKENS, NEVER, Sampler(0.9, seed=3))
    assert len(set(some.drafted)) > 2 and sum(some.accepted) > 0


def test_prompts_together_give_the_answers_of_each_alone(method, model, eagle3_oracle):
    together = speculative_together(
        eagle3_oracle, [method.drafter(model, 0.2) for _ in PROMPTS], PROMPTS, TOKENS, NEVER, [GREEDY] * len(PROMPTS)
    )
    alone = [greedy(method, model, eagle3_oracle, prompt, 0.2) for prompt in PROMPTS]
    assert [(a.ids, a.drafted, a.accepted) for a in together] == [(a.ids, a.drafted, a.accepted) for a in alone]


def test_a_slot_counts_as_offered_where_it_was_proposed():
    """Ten tokens: steps that propose 3, 0, 2 and 3 and accept 3, 0, 1 and, of the two tokens left, 1."""
    counted = Acceptance(4).add_answer([3, 0, 1, 1], 10, [3, 0, 2, 3])
    assert counted.offered[1:] == [3, 3, 1] and counted.accepted[1:] == [3, 1, 1]
    assert (counted.steps, counted.tokens) == (4, 9)
    assert Acceptance(4).add_answer([3, 0, 1, 1], 10).offered[1:] == [4, 4, 3]


def test_a_draft_without_a_confidence_head_is_refused(tiny_target, tmp_path):
    method = make_method(tiny_target)
    pair = Pair(tmp_path, tmp_path, None, method, method.skeleton())
    assert pair.drafter().block_size == B
    with pytest.raises(UserError, match="--least-survival 0.5 .* has no confidence head; leave it out"):
        pair.drafter(0.5)
