"""Speculative sampling keeps the target's law, and the check that says so finds the mistakes that others have made.

A toy language of V tokens: the next one depends on the last one alone, so that the law of the first tokens is a product.
"""

import math

import pytest
import torch
from torch import Tensor

from torchspec.acceptance import sampling
from torchspec.acceptance.sampling import GREEDY, Sampler, largest, log_probability, probabilities, residual

V, FIRST, TEMPERATURE, TRIALS = 4, 3, 0.7, 4000


def table(seed: int, *shape: int) -> Tensor:
    return 1.5 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed))


P, Q_SLOT, Q_CHAIN = (
    table(0, V),
    table(12, FIRST - 1),
    table(9, V),
)  # logits: after each token; of each slot after token 0; after each token


def independent_slots(sampler: Sampler) -> tuple[Tensor, Tensor]:
    return sampler.choose(Q_SLOT)


def chain(sampler: Sampler) -> tuple[Tensor, Tensor]:
    tokens, laws = [torch.tensor([0])], []
    for _ in range(FIRST - 1):
        token, q = sampler.choose(Q_CHAIN[tokens[-1]])
        tokens.append(token)
        laws.append(q)
    return torch.cat(tokens[1:]), torch.cat(laws)


def first_tokens(sampler: Sampler, draft) -> list[int]:
    """One block after token 0 and, where it commits too few tokens, plain draws: what later blocks commit has the same law by induction."""
    drafts, q = draft(sampler)
    accepted, own = sampler.verify(drafts, q, P[torch.cat((torch.tensor([0]), drafts))])
    tokens = [*drafts[:accepted].tolist(), own]
    while len(tokens) < FIRST:
        tokens.append(int(sampler.choose(P[tokens[-1:]])[0]))
    return tokens


def distance_from_the_target(draft) -> float:
    """Total variation between the first tokens of TRIALS texts and the target's law."""
    p, sampler, counts = (
        probabilities(P, TEMPERATURE).double(),
        Sampler(TEMPERATURE, seed=3),
        torch.zeros((V,) * FIRST, dtype=torch.float64),
    )
    law = p[0][:, None, None] * p[:, :, None] * p[None]
    for _ in range(TRIALS):
        counts[tuple(first_tokens(sampler, draft))] += 1
    return float((counts / TRIALS - law).abs().sum() / 2)


def sampling_error() -> float:
    """Total variation that independent draws from a law on V^FIRST cells exceed with probability 1e-6 at most.

    Its mean is at most sqrt(cells / trials) / 2 (Jensen, then Cauchy-Schwarz); one text moves it by 1 / trials at most, so it exceeds
    its mean by t with probability exp(-2 t^2 trials) at most (McDiarmid).
    """
    return math.sqrt(V**FIRST / TRIALS) / 2 + math.sqrt(math.log(1e6) / (2 * TRIALS))


@pytest.mark.parametrize("draft", [independent_slots, chain])
def test_the_first_tokens_have_the_targets_law(draft):
    assert distance_from_the_target(draft) < sampling_error()


def drawn_at_another_temperature(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """The request's temperature reaches the target, but not the draft's q."""
    return sampler.choose(Q_SLOT)[0], probabilities(Q_SLOT, 3 * TEMPERATURE)


def first_choices(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """The draft proposes greedily and claims to have drawn."""
    return Q_SLOT.argmax(-1), probabilities(Q_SLOT, TEMPERATURE)


def slots_in_another_order(sampler: Sampler) -> tuple[Tensor, Tensor]:
    drafts, q = sampler.choose(Q_SLOT)
    return drafts, q.flip(0)


@pytest.mark.parametrize("bug", [drawn_at_another_temperature, first_choices, slots_in_another_order])
def test_a_planted_draft_that_lies_about_its_law_is_found(bug):
    assert distance_from_the_target(bug) > sampling_error()


@pytest.mark.parametrize("draft", [independent_slots, chain])
def test_a_planted_draw_from_the_target_in_place_of_the_residual_is_found(monkeypatch, draft):
    monkeypatch.setattr(sampling, "residual", lambda p, q: p)
    assert distance_from_the_target(draft) > sampling_error()


def test_a_draft_is_accepted_as_often_as_the_laws_overlap():
    """Hoeffding: a mean of n values in [0, 1] is off by sqrt(ln(2e6) / 2n) with probability 1e-6 at most."""
    sampler, p, q = Sampler(TEMPERATURE, seed=0), probabilities(P[:1], TEMPERATURE), probabilities(Q_SLOT[:1], TEMPERATURE)
    overlap, trials = float(p.minimum(q).sum()), 2000
    accepted = sum(sampler.verify(*sampler.choose(Q_SLOT[:1]), P[:2])[0] for _ in range(trials))
    assert 0.3 < overlap < 0.9 and abs(accepted / trials - overlap) < math.sqrt(math.log(2e6) / (2 * trials))


def test_the_targets_own_law_is_always_accepted():
    sampler, logits = Sampler(TEMPERATURE, seed=0), table(5, 8)
    assert {sampler.verify(*sampler.choose(logits[:7]), logits)[0] for _ in range(200)} == {7}


def test_a_token_that_the_target_never_writes_is_never_accepted_nor_drawn():
    sampler, logits = Sampler(1.0, seed=0), torch.tensor([[0.0, 0.0, -torch.inf]]).repeat(2, 1)
    q = torch.tensor([[0.0, 0.0, 1.0]])
    results = [sampler.verify(torch.tensor([2]), q, logits) for _ in range(200)]
    assert {accepted for accepted, _ in results} == {0} and {token for _, token in results} == {0, 1}


def test_the_residual_is_the_positive_part_and_laws_that_differ_by_rounding_leave_one():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    assert residual(p, q).tolist() == [0.25, 0, 0]
    assert torch.equal(residual(p, torch.nextafter(p, torch.ones(3))), p)


def test_a_seed_decides_all_draws():
    draws = [[tuple(first_tokens(sampler, chain)) for _ in range(20)] for sampler in (Sampler(1.0, 1), Sampler(1.0, 1), Sampler(1.0, 2))]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("right", range(FIRST))
def test_greedy_accepts_what_equals_the_first_choice_and_draws_nothing(right):
    logits = table(6, FIRST)
    choices = logits.argmax(-1)
    drafts = choices[:-1].clone()
    drafts[right:] = (drafts[right:] + 1) % V
    tokens, q = GREEDY.choose(logits)
    assert torch.equal(tokens, choices) and q is None
    assert GREEDY.verify(drafts, None, logits) == (right, int(choices[right]))


def test_low_temperatures_tend_to_the_greedy_tokens():
    logits = table(7, 50)
    assert torch.equal(Sampler(1e-4, seed=0).choose(logits)[0], logits.argmax(-1))


def test_log_probabilities_are_the_logarithms_in_float64_and_do_not_underflow():
    logits, tokens = table(3, 11), torch.arange(11) % V
    expected = (logits.double() / TEMPERATURE).softmax(-1)[torch.arange(11), tokens].log().float()
    torch.testing.assert_close(log_probability(logits, tokens, TEMPERATURE), expected)
    assert log_probability(torch.tensor([[0.0, -500.0]]), torch.tensor([1]), 1.0) == -500.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_largest_logit_is_argmax_and_the_first_among_equals(dtype):
    """In bfloat16 leading logits are often equal; the order must not depend on how many rows are looked at."""
    logits = torch.randint(0, 50, (64, 5000), generator=torch.Generator().manual_seed(0)).to(dtype)
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(largest(logits), logits.argmax(-1)) and torch.equal(largest(logits), first)
    assert all(int(largest(row[None])) == int(at) for row, at in zip(logits, first, strict=True))
