"""Prompts decoded together write what each writes alone, whatever lengths, stops and accepted drafts the others have."""

import pytest
import torch

from tests.unit.decode.drafters import Scripted
from tests.unit.tiny import LAYERS, NEVER, B, lively, make_eagle3, random_prompt
from torchspec.acceptance.sampling import Sampler
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.decode.batch import plain_together, speculative_together
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.errors import UserError

LENGTHS = (9, 3, 17, 12)
PROMPTS = [random_prompt(seed, length) for seed, length in enumerate(LENGTHS)]
MOST = 40


def samplers(temperature: float = 0.0) -> list[Sampler]:
    return [Sampler(temperature, seed=i) for i in range(len(PROMPTS))]


def written(answers) -> list:
    return [(a.ids, a.accepted, a.from_draft) for a in answers]


@pytest.fixture(scope="module", params=["dflash", "eagle3", "eagle3, pruned"])
def drafting(request, tiny_method, tiny_oracle, tiny_eagle3, eagle3_oracle):
    """(target, a maker of drafters) of a draft that is right now and then: random weights, hence never twice the same."""
    if request.param == "dflash":
        method, oracle = tiny_method, tiny_oracle
    else:
        ids = torch.arange(3, 60, 2)
        method = tiny_eagle3 if request.param == "eagle3" else make_eagle3(tiny_eagle3.target, ids)
        oracle = eagle3_oracle
    model = method.build(torch.Generator().manual_seed(0))
    model = model if request.param == "eagle3, pruned" else lively(model)
    return oracle, lambda: method.drafter(model)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_plain_answers_are_those_of_decoding_alone(tiny_oracle, temperature):
    alone = [plain_decode(tiny_oracle, p, MOST, {5, 9}, s) for p, s in zip(PROMPTS, samplers(temperature), strict=True)]
    assert len({len(a.ids) for a in alone}) > 1  # they end at different times
    assert written(plain_together(tiny_oracle, PROMPTS, MOST, {5, 9}, samplers(temperature))) == written(alone)


@pytest.mark.parametrize(("temperature", "stop"), [(0.0, NEVER), (0.9, {5, 9})], ids=["to the cap", "sampled, stop tokens"])
def test_speculative_answers_are_those_of_decoding_alone(drafting, temperature, stop):
    """Tokens, accepted drafts of every step and who wrote what; sampled with one generator per prompt."""
    target, drafter = drafting
    alone = [speculative_decode(target, drafter(), p, MOST // 2, stop, s) for p, s in zip(PROMPTS, samplers(temperature), strict=True)]
    together = speculative_together(target, [drafter() for _ in PROMPTS], PROMPTS, MOST // 2, stop, samplers(temperature))
    assert written(together) == written(alone)
    if temperature == 0:
        assert [a.ids for a in together] == [a.ids for a in plain_together(target, PROMPTS, MOST // 2, stop, samplers())]


def test_every_mixture_of_accepted_drafts_is_lossless(tiny_oracle):
    """Sequence i is wrong in slot 1 + (step + i) mod B, or nowhere: every step rejects another number of rows in every sequence."""
    plain = [plain_decode(tiny_oracle, p, MOST, NEVER).ids for p in PROMPTS]
    drafters = [
        Scripted(p, ids, lambda step, k, i=i: k == 1 + (step + i) % B) for i, (p, ids) in enumerate(zip(PROMPTS, plain, strict=True))
    ]
    together = speculative_together(tiny_oracle, drafters, PROMPTS, MOST, NEVER, samplers())
    assert [a.ids for a in together] == plain
    assert len({tuple(a.accepted) for a in together}) == len(PROMPTS)
    for drafter, prompt, ids in zip(drafters, PROMPTS, plain, strict=True):  # features of every committed token, and of no other
        context = torch.cat(drafter.rows)
        sequence = torch.cat((prompt, torch.tensor(ids)))[: len(context)]
        torch.testing.assert_close(context, tiny_oracle.features(sequence[None])[0], rtol=1e-4, atol=1e-4)  # float32, other shapes


@pytest.mark.parametrize("most", [1, 2])
def test_one_prompt_and_answers_of_a_token_or_two(tiny_oracle, most):
    alone = plain_decode(tiny_oracle, PROMPTS[0], most, NEVER)
    assert written(plain_together(tiny_oracle, PROMPTS[:1], most, NEVER, samplers()[:1])) == written([alone])
    drafter = Scripted(PROMPTS[0], alone.ids)
    assert speculative_together(tiny_oracle, [drafter], PROMPTS[:1], most, NEVER, samplers()[:1])[0].ids == alone.ids


def test_the_rate_of_every_answer_is_the_batchs(tiny_oracle):
    answers = plain_together(tiny_oracle, PROMPTS, MOST, {5, 9}, samplers())
    total = sum(len(a.ids) - 1 for a in answers) / sum(a.seconds for a in answers)
    assert [a.tokens_per_second for a in answers if len(a.ids) > 1] == pytest.approx([total] * sum(len(a.ids) > 1 for a in answers))


def test_a_target_with_a_sliding_window_is_refused(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=16, head_dim=8, dtype="float32",
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    target = HFCapture(CaptureSpec(tmp_path, LAYERS, torch.float32))
    with pytest.raises(UserError, match="--batch-size 1"):
        plain_together(target, PROMPTS, 4, NEVER, samplers())
