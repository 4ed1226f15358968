"""What is served is what was trained and measured, for every method: proposals of the trainer are the drafter's, what it draws from is
what the evaluator scores, decoding changes no token, and offline tau is decoding's. How each method computes: test_METHOD_serving.py.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.unit.methods.cases import CASES, lively_draft, oracle_of
from tests.unit.tiny import HIDDEN, LAYERS, NEVER, B, answered, random_prompt
from torchspec.acceptance.sampling import GREEDY, Sampler
from torchspec.acceptance.walk import Acceptance
from torchspec.decode.offline import accepted_per_step, evaluate_anchors
from torchspec.decode.pair import cast_parameters
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.nn.packed import pack_linears
from torchspec.records import Features, Prompt
from torchspec.target.frozen import FrozenTarget
from torchspec.training.stream import pack

ANCHORS = [1, 2, 9, 17, 30]
TEMPERATURE = 0.8


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def method(case, tiny_target):
    return case.make(tiny_target)


@pytest.fixture(scope="module")
def model(method):
    return lively_draft(method)


@pytest.fixture(scope="module")
def oracle(case, tiny_oracle, eagle3_oracle):
    return oracle_of(case, tiny_oracle, eagle3_oracle)


@pytest.fixture(scope="module")
def plain(tiny_oracle) -> tuple[torch.Tensor, list[int]]:
    """A prompt and what the target writes after it."""
    prompt = random_prompt(1, 7)
    return prompt, plain_decode(tiny_oracle, prompt, 40, NEVER).ids


@pytest.fixture(scope="module")
def features(oracle):
    return oracle.capture(answered(oracle, random_prompt(0, 12), 24))


def test_features_come_from_the_layers_that_the_draft_names(case, method, oracle):
    assert method.layer_ids == case.layers == oracle.layer_ids
    assert method.skeleton().fc.weight.shape == (HIDDEN, len(LAYERS) * HIDDEN)


@torch.no_grad()
def test_proposals_for_a_whole_document_are_the_drafters_at_every_anchor(case, method, model, features, monkeypatch):
    """Also when the document is proposed in several parts; the drafter extends by one token at a time."""
    drafter, expected = method.drafter(model), []
    for anchor in range(1, len(features.context)):
        drafter.extend(features.prompt.ids[anchor - 1 : anchor], features.context[anchor - 1 : anchor])
        expected.append(drafter.propose(int(features.prompt.ids[anchor]), GREEDY)[0])
    anchors, said = torch.arange(1, len(features.context)), set(torch.stack(expected).flatten().tolist())
    assert len(said) > case.variety and said <= set(case.vocabulary.tolist())
    for settings in case.parts:
        for module, name, value in settings:
            monkeypatch.setattr(module, name, value)
        assert torch.equal(method.propose(model, features, anchors), torch.stack(expected))


@torch.no_grad()
def test_training_counts_over_every_anchor_what_an_evaluation_counts(case, method, model, oracle, features):
    """In a text that goes on with the draft's own tokens at one place, and with a draft that is hardly ever right elsewhere."""
    ids, anchor = features.prompt.ids.clone(), 20
    ids[anchor + 1 : anchor + B] = method.propose(model, features, torch.tensor([anchor]))[0]
    prompt = replace(features.prompt, ids=ids)
    found = evaluate_anchors(method, model, oracle, [prompt])[1]
    right, count = method.loss(model, pack([oracle.capture(prompt)], 0), 0)[2]["block_tau"]
    assert found.tolist() == [right, count] and right >= count + B - 1


@torch.no_grad()
def drawn(method, model, features, anchor: int) -> tuple[torch.Tensor, torch.Tensor, Features]:
    """What the drafter draws after an anchor [B-1], what it drew from [B-1, V], and the text that goes on with these tokens."""
    ids, context, drafter = features.prompt.ids, features.context, method.drafter(model)
    drafter.extend(ids[:anchor], context[:anchor])
    tokens, q = drafter.propose(int(ids[anchor]), Sampler(TEMPERATURE, seed=anchor))
    text = torch.cat((ids[: anchor + 1], tokens))
    unseen = torch.randn(B, context.shape[1], generator=torch.Generator().manual_seed(0))
    prompt = Prompt(0, text, torch.arange(len(text)) > anchor)
    return tokens, q, replace(features, prompt=prompt, context=torch.cat((context[:anchor], unseen)))


@torch.no_grad()
def test_what_the_drafter_draws_from_is_what_the_evaluator_scores(case, method, model, features):
    """A chain is fed the token that was drawn, not the first choice; a pruned draft draws from the tokens that it has."""
    first_choices = 0
    for anchor in ANCHORS:
        tokens, q, text = drawn(method, model, features, anchor)
        first_choices += int((tokens == q.argmax(-1)).sum())
        torch.testing.assert_close(q.sum(-1), torch.ones(B - 1))
        assert set(q.nonzero()[:, 1].tolist()) <= set(case.vocabulary.tolist()) and q.shape == (B - 1, 64)
        scored = method.text_log_probabilities(model, text, torch.tensor([anchor]), TEMPERATURE)
        torch.testing.assert_close(scored[0], q.gather(1, tokens[:, None])[:, 0].log(), rtol=1e-4, atol=1e-4)
    assert first_choices < len(ANCHORS) * (B - 1)


@torch.no_grad()
def test_a_whole_document_is_scored_in_parts_as_at_once(case, method, model, features, monkeypatch):
    """And a place beyond the end of the text, which means nothing, harms no other."""
    anchors = torch.arange(1, len(features.context))
    whole = method.text_log_probabilities(model, features, anchors, TEMPERATURE)
    after = features.prompt.ids[(anchors[:, None] + torch.arange(1, B)).clamp(max=len(features.context) - 1)]
    assert whole.shape == (len(anchors), B - 1) and (whole < 0).all()
    possible, known = whole > -torch.inf, torch.isin(after, case.vocabulary)
    assert possible.any() and (possible & ~known).sum() == 0 if case.candidates else torch.equal(possible, known)
    for settings in case.parts:
        for module, name, value in settings:
            monkeypatch.setattr(module, name, value)
        torch.testing.assert_close(method.text_log_probabilities(model, features, anchors, TEMPERATURE), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_cache_holds_committed_rows_only_and_a_reset_forgets_them(case, method, model, features):
    drafter = method.drafter(model)
    for end, piece in ((6, 6), (7, 1), (11, 4)):
        drafter.extend(features.prompt.ids[end - piece : end], features.context[end - piece : end])
        drafter.propose(int(features.prompt.ids[end]), GREEDY)
        # a layer that slides keeps the rows that the next block's first slot sees: those of its window, less that slot itself
        kept = {end if window is None else min(end, window - 1) for window in case.windows}
        assert {len(rows) for rows in tree_leaves(drafter.cache)} == kept and drafter.committed == end
    grown = tree_leaves(drafter.cache)
    drafter.reset()
    drafter.extend(features.prompt.ids[:11], features.context[:11])
    drafter.propose(int(features.prompt.ids[11]), GREEDY)
    for old, new in zip(grown, tree_leaves(drafter.cache), strict=True):
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-5)  # keys carry their positions, so these are right as well


def test_decoding_is_lossless_and_offline_tau_is_its_tau(method, model, oracle, plain):
    """To the last count: steps, histogram and slots of a walk over the finished text, and of the loop that wrote it."""
    prompt, written = plain
    answer = speculative_decode(oracle, method.drafter(model), prompt, len(written), NEVER)
    assert answer.ids == written
    text = torch.cat((prompt, torch.tensor(answer.ids)))
    offline, sample = Acceptance(B), oracle.capture(Prompt(0, text, torch.arange(len(text)) >= len(prompt)))
    for accepted, length in accepted_per_step(method, model, sample):
        offline.add_answer(accepted, length)
    assert torch.equal(offline.counts(), Acceptance(B).add_answer(answer.accepted, len(answer.ids)).counts())


@torch.no_grad()
def test_packed_for_decoding_a_draft_proposes_what_it_proposes_plain(case, tiny_folder, features):
    """In bfloat16, as a draft is loaded: a drafter takes the packed matrices for the plain ones, and no bit differs."""
    method = case.make(FrozenTarget.load(tiny_folder, torch.bfloat16))
    model, said = cast_parameters(lively_draft(method), torch.bfloat16).requires_grad_(False), []
    for draft in (model, pack_linears(model)):
        drafter = method.drafter(draft)
        drafter.extend(features.prompt.ids[:9], features.context[:9].bfloat16())
        said.append(drafter.propose(int(features.prompt.ids[9]), GREEDY)[0])
    assert torch.equal(*said) and len(said[0]) == B - 1
