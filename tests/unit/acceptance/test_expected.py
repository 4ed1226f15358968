"""Expected counts are the mean over all that decoding may do; at a temperature, decoding does what they say and keeps the target's law."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.unit.decode.drafters import FirstChoice
from tests.unit.tiny import NEVER, B, answered, lively, make_eagle3, make_method, overfit, random_prompt
from torchspec.acceptance import sampling
from torchspec.acceptance.expected import add_expected
from torchspec.acceptance.sampling import Sampler
from torchspec.acceptance.walk import Acceptance, walk
from torchspec.capture.hf import HFCapture
from torchspec.decode import offline
from torchspec.decode.batch import speculative_together
from torchspec.decode.offline import acceptance_probabilities, evaluate_expected, evaluate_offline, read
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.methods.base import Method
from torchspec.records import Prompt


def random_acceptance(n: int, seed: int = 0) -> Tensor:
    accept = torch.rand(n, B - 1, generator=torch.Generator().manual_seed(seed))
    return accept * (torch.arange(n)[:, None] + torch.arange(1, B) <= n)  # nothing beyond the end


def tallied(accepts: list[Tensor]) -> Acceptance:
    total = Acceptance(B)
    for accept in accepts:
        add_expected(total, accept)
    return total


def numbers(acceptance: Acceptance) -> Tensor:
    counts = [acceptance.steps, acceptance.tokens, *acceptance.histogram, *acceptance.accepted, *acceptance.offered]
    return torch.tensor(counts, dtype=torch.float64)


def walked(right: Tensor) -> Acceptance:
    """right [n, B-1] of a walk that accepts what it says."""
    return Acceptance(B).add_answer(walk(right.int().cumprod(1).sum(1).tolist()), len(right) + 1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_expected_counts_are_the_mean_over_all_walks(n):
    """Every pattern of accepted and rejected tokens, weighted with its probability."""
    accept, mean = random_acceptance(n).double(), torch.zeros(len(numbers(Acceptance(B))), dtype=torch.float64)
    for pattern in itertools.product((0, 1), repeat=n * (B - 1)):
        right = torch.tensor(pattern).view(n, B - 1)
        weight = float(torch.where(right == 1, accept, 1 - accept).prod())
        if weight:
            mean += weight * numbers(walked(right))
    torch.testing.assert_close(numbers(tallied([accept])), mean, rtol=1e-12, atol=1e-12)


def test_expected_steps_are_those_of_many_simulated_walks():
    """Steps of an answer of 40 tokens lie in [40 / B, 40]: Hoeffding, with probability 1e-6 of being further off."""
    accept, trials, g = random_acceptance(40, seed=1), 1000, torch.Generator().manual_seed(2)
    steps = sum(walked(torch.rand(40, B - 1, generator=g) < accept).steps for _ in range(trials))
    margin = (40 - 40 / B) * math.sqrt(math.log(2e6) / (2 * trials))
    assert abs(tallied([accept]).steps - steps / trials) < margin


@pytest.mark.parametrize("seed", range(10))
def test_where_all_is_certain_it_is_the_walk(seed):
    """To the last count, and over several answers."""
    rights = [(random_acceptance(n, seed) > 1 - (seed + 1) / 12).int() for n in (1, 5, 17)]
    total = Acceptance(B)
    for right in rights:
        total.add_answer(walk(right.cumprod(1).sum(1).tolist()), len(right) + 1)
    certain = tallied([right.float() for right in rights])
    assert certain.to_json() == total.to_json() and certain.moments == total.moments


@pytest.mark.parametrize("seed", range(10))
def test_expected_counts_are_conserved(seed):
    total = tallied([random_acceptance(n, seed) for n in (1, 3, 30)])
    assert total.tokens == 34 == pytest.approx(sum(m * steps for m, steps in enumerate(total.histogram)))
    assert total.steps == pytest.approx(sum(total.histogram))
    assert 1 <= total.tau <= B and total.histogram[0] == total.accepted[0] == total.offered[0] == 0


# --- the target's pass and the draft's


@pytest.mark.parametrize("chunk", [512, 7])
def test_one_pass_yields_the_features_and_the_probability_of_every_token(tiny_oracle, monkeypatch, chunk):
    monkeypatch.setattr(offline, "READ_TOKENS", chunk)
    sample = answered(tiny_oracle, random_prompt(0, 8), 20)
    features, log_p = read(tiny_oracle, sample, 0.7)
    logits = tiny_oracle.model(input_ids=sample.ids[None]).logits[0].double()
    direct = (logits[:-1] / 0.7).log_softmax(-1).gather(1, sample.ids[1:, None])[:, 0].float()
    torch.testing.assert_close(log_p[1:], direct, rtol=1e-4, atol=1e-4)  # float32, other shapes
    torch.testing.assert_close(features.context, tiny_oracle.capture(sample).context, rtol=1e-4, atol=1e-4)


def test_an_answer_ends_where_its_span_ends(tiny_method, tiny_oracle):
    """Tokens of the next turn follow the first answer: no draft of them counts."""
    mask = torch.zeros(40, dtype=torch.bool)
    mask[8:20] = mask[25:26] = mask[30:] = True  # an answer of one token has no step
    answers = acceptance_probabilities(tiny_method, lively(tiny_method.skeleton()), tiny_oracle, Prompt(0, random_prompt(1, 40), mask), 1.0)
    assert [answer.shape for answer in answers] == [(11, B - 1), (9, B - 1)]
    for answer in answers:
        inside = torch.arange(len(answer))[:, None] + torch.arange(1, B) <= len(answer)
        assert torch.equal(answer > 0, inside) and answer.max() <= 1


@pytest.mark.parametrize("name", ["tiny_method", "tiny_eagle3"])
def test_near_temperature_zero_it_is_the_greedy_tau(name, request):
    method, oracle = request.getfixturevalue(name), request.getfixturevalue("tiny_oracle" if name == "tiny_method" else "eagle3_oracle")
    samples = [answered(oracle, random_prompt(seed, 6 + seed), 45, index=seed) for seed in range(3)]
    model = method.build(torch.Generator().manual_seed(0))
    overfit(method, model, [oracle.capture(samples[0])], 40)
    greedy, cold = evaluate_offline(method, model, oracle, samples), evaluate_expected(method, model, oracle, samples, 1e-5)
    assert greedy.tau > 1.1
    torch.testing.assert_close(numbers(cold), numbers(greedy), rtol=1e-6, atol=1e-6)


# --- decoding at a temperature

ANSWERS, TOKENS = 40, 60


Case = tuple[Method, HFCapture, torch.nn.Module]


@pytest.fixture(scope="module")
def dflash(tiny_target, tiny_oracle) -> Case:
    """Method, oracle and a draft with a law of its own, quite another one than the target's. One layer: the law is the sampler's work."""
    method = make_method(tiny_target, num_layers=1)
    return method, tiny_oracle, lively(method.skeleton())


@pytest.fixture(scope="module")
def pruned(tiny_target, eagle3_oracle) -> Case:
    method = make_eagle3(tiny_target, ids=torch.arange(0, 64, 2))
    model = lively(method.skeleton())
    model.keep(method.vocabulary)
    return method, eagle3_oracle, model


@pytest.fixture(scope="module", params=["dflash", "pruned"])
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def decoded(case: Case, answers: int = ANSWERS, drafting=lambda drafter: drafter) -> list[tuple[Prompt, Acceptance]]:
    """At temperature 1. Together, which saves three target forwards of four; the first one is written alone as well."""
    method, oracle, model = case
    prompts = [random_prompt(seed % 4, 8) for seed in range(answers)]
    drafters = [drafting(method.drafter(model)) for _ in prompts]
    together = speculative_together(oracle, drafters, prompts, TOKENS, NEVER, [Sampler(1.0, seed) for seed in range(answers)])
    alone = speculative_decode(oracle, drafters[0], prompts[0], TOKENS, NEVER, Sampler(1.0, 0))
    assert (alone.ids, alone.accepted) == (together[0].ids, together[0].accepted)
    results = []
    for seed, (prompt, answer) in enumerate(zip(prompts, together, strict=True)):
        text = Prompt(seed, torch.cat((prompt, torch.tensor(answer.ids))), torch.arange(8 + TOKENS) >= 8)
        results.append((text, Acceptance(B).add_answer(answer.accepted, TOKENS)))
    return results


def surprise(oracle, texts: list[Prompt], temperature: float) -> float:
    """Sum of log p(x_t) minus its expectation under p, in standard deviations: a martingale if every x_t was drawn from p."""
    total = variance = 0.0
    for text in texts:
        log_p = (oracle.model(input_ids=text.ids[None]).logits[0, 7:-1].double() / temperature).log_softmax(-1)
        mean = (log_p.exp() * log_p).sum(-1)
        total += float((log_p.gather(1, text.ids[8:, None])[:, 0] - mean).sum())
        variance += float(((log_p.exp() * log_p.square()).sum(-1) - mean.square()).sum())
    return total / math.sqrt(variance)


def disagreement(case: Case, results: list[tuple[Prompt, Acceptance]], temperature: float) -> float:
    """Counts of decoding minus those expected given its text, in standard errors over answers; the largest of steps and slots."""
    method, oracle, model = case
    rows = []
    for text, counted in results:
        predicted = numbers(evaluate_expected(method, model, oracle, [text], temperature))
        rows.append(numbers(counted) - predicted)
    differences = torch.stack(rows)[:, [0, *range(-B - B + 1, -B)]]  # steps; accepted[1:]
    return float((differences.mean(0) / (differences.std(0) / math.sqrt(len(rows)))).abs().max())


def test_decoding_keeps_the_law_and_takes_the_steps_that_its_text_says(case):
    """Normal approximation: one of these 5 numbers is beyond 5 with a probability of 3e-6."""
    results = decoded(case)
    assert 1.1 < sum(a.tokens for _, a in results) / sum(a.steps for _, a in results) < B - 1
    assert abs(surprise(case[1], [text for text, _ in results], 1.0)) < 5
    assert disagreement(case, results, 1.0) < 5
    assert disagreement(case, results, 0.5) > 5  # planted: offline at another temperature than was decoded at


def test_drafts_that_are_no_draws_are_accepted_where_the_sampled_text_holds_them(case):
    """The law of servers: to the last count of every sampled answer it is the walk that greedy text has, and never what draws would do.

    Oracle: rejection sampling with a draft whose probability is 1.
    """
    method, oracle, model = case
    results = decoded(case, ANSWERS // 4, FirstChoice)  # exact, so that few answers show it
    texts, counted = [text for text, _ in results], sum(numbers(counts) for _, counts in results)
    assert abs(surprise(oracle, texts, 1.0)) < 5
    assert torch.equal(numbers(evaluate_offline(method, model, oracle, texts)), counted)
    tau = counted[1] / counted[0]
    assert 1.01 < tau < 0.97 * evaluate_expected(method, model, oracle, texts, 1.0).tau


def test_a_planted_draw_from_the_target_in_place_of_the_residual_is_found(dflash, monkeypatch):
    monkeypatch.setattr(sampling, "residual", lambda p, q: p)
    results = decoded(dflash)
    assert abs(surprise(dflash[1], [text for text, _ in results], 1.0)) > 5
    assert disagreement(dflash, results, 1.0) > 5


def test_a_seed_decides_the_answer_and_stop_and_cap_hold(tiny_method, tiny_oracle):
    prompt, drafter = random_prompt(0, 8), tiny_method.drafter(lively(tiny_method.skeleton()))
    ids = speculative_decode(tiny_oracle, drafter, prompt, 30, NEVER, Sampler(1.0, 5)).ids
    assert ids == speculative_decode(tiny_oracle, drafter, prompt, 30, NEVER, Sampler(1.0, 5)).ids
    assert ids != speculative_decode(tiny_oracle, drafter, prompt, 30, NEVER, Sampler(1.0, 6)).ids
    assert ids[:11] == speculative_decode(tiny_oracle, drafter, prompt, 11, NEVER, Sampler(1.0, 5)).ids
    end = ids.index(ids[12]) + 1
    assert ids[:end] == speculative_decode(tiny_oracle, drafter, prompt, 30, {ids[12]}, Sampler(1.0, 5)).ids


def test_plain_decoding_draws_from_the_target(tiny_oracle):
    texts = []
    for seed in range(8):
        ids = torch.cat(
            (random_prompt(seed, 8), torch.tensor(plain_decode(tiny_oracle, random_prompt(seed, 8), 60, NEVER, Sampler(0.7, seed)).ids))
        )
        texts.append(Prompt(seed, ids, torch.arange(68) >= 8))
    assert abs(surprise(tiny_oracle, texts, 0.7)) < 5 < abs(surprise(tiny_oracle, texts, 1.0))
