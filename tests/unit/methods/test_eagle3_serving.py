"""What is trained is served: the trainer's chains equal the cached loop, its proposals the drafter's; planted bugs show."""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, NEVER, B, all_valid, answered, lively, make_eagle3, random_prompt
from torchspec.errors import ContractError
from torchspec.evaluate.acceptance import Acceptance, accepted_per_step
from torchspec.evaluate.decode import plain_decode, speculative_decode
from torchspec.evaluate.sampling import GREEDY, Sampler
from torchspec.methods.eagle3 import method as eagle3
from torchspec.methods.eagle3.generate import Eagle3Drafter
from torchspec.nn.attention import BlockLayout, structured_attention
from torchspec.records import Features, Prompt

ANCHORS = [1, 2, 9, 17, 30]
PIECES = {1: [1], 2: [1, 1], 9: [4, 1, 4], 17: [10, 3, 3, 1], 30: [12, 1, 1, 2, 4, 4, 3, 1, 2]}  # committed tokens per step
TEMPERATURE = 0.8
PRUNED = torch.arange(0, 64, 3)
VARIANTS = {
    "plain": {},
    "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
    "other norms": {"norm_before_residual": True, "norm_before_fc": True},
    "pruned": {"ids": PRUNED},
}


@pytest.fixture(params=VARIANTS, scope="module")
def method(request, tiny_target):
    return make_eagle3(tiny_target, **VARIANTS[request.param])


@pytest.fixture(scope="module")
def model(method):
    model = lively(method.skeleton())
    if method.config.draft_vocab_size is not None:
        model.keep(method.vocabulary)
    return model


@pytest.fixture(scope="module")
def features(eagle3_oracle):
    return eagle3_oracle.capture(answered(eagle3_oracle, random_prompt(0, 12), 24))


@torch.no_grad()
def served(method, model, features, anchor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [B-1, H] and tokens [B-1] of one chain after `PIECES[anchor]` steps of the inference loop."""
    drafter, kept, end = method.drafter(model), [], 0
    hook = model.register_forward_hook(lambda _m, _i, out: kept.append(out[:, 0]))
    for piece in PIECES[anchor]:
        drafter.extend(features.prompt.ids[end : end + piece], features.context[end : end + piece])
        end += piece
        tokens, _ = drafter.propose(int(features.prompt.ids[end]), GREEDY)
    hook.remove()
    assert end == anchor
    return kept[-1], tokens


@torch.no_grad()
def trained(method, model, features, tokens: dict[int, torch.Tensor]) -> torch.Tensor:
    """The trainer's outputs [B-1, chains, H] when chains are fed the tokens that the draft chose in serving."""
    fed = torch.stack([tokens[anchor] for anchor in ANCHORS])  # [chains, B-1]: token k is fed to step k
    layout = all_valid([ANCHORS], (len(features.context),))
    return method.hidden(model, features.prompt.ids, features.context, layout, lambda step, _: method.embed(fed[:, step - 1]))


def test_trainer_chains_equal_the_cached_loop(method, model, features):
    results = {anchor: served(method, model, features, anchor) for anchor in ANCHORS}
    ours = trained(method, model, features, {anchor: tokens for anchor, (_, tokens) in results.items()})
    for i, anchor in enumerate(ANCHORS):
        hidden, tokens = results[anchor]
        torch.testing.assert_close(ours[:, i], hidden, rtol=1e-4, atol=1e-4)  # float32; the sums run in another order
        assert torch.equal(method.vocabulary.choose(ours[:, i], GREEDY, 64)[0], tokens)
    with torch.no_grad():
        assert torch.equal(method.propose(model, features, torch.tensor(ANCHORS)), torch.stack([results[a][1] for a in ANCHORS]))


def one_row_late(*qkv):
    """The anchor's own row is visible: `<=` in place of `<`."""
    return structured_attention(*qkv[:5], replace(qkv[5], anchors=qkv[5].anchors + 1))


def no_own_steps(q, k, v, k_own, v_own, layout):
    """A chain forgets its earlier steps."""
    return structured_attention(q, k, v, k_own[:0], v_own[:0], layout)


class LatePositions(BlockLayout):
    """Rows counted from one, chains with them: relative positions stay, so this one is harmless and must not show."""

    @property
    def positions(self):
        context, block = super().positions
        return context + 1, block + 1


@pytest.mark.parametrize(("bug", "shows"), [(one_row_late, True), (no_own_steps, True), (LatePositions, False)])
def test_planted_bugs_part_training_from_serving(tiny_eagle3, features, monkeypatch, bug, shows):
    model = lively(tiny_eagle3.skeleton())
    results = {anchor: served(tiny_eagle3, model, features, anchor) for anchor in ANCHORS}
    name = "tiled_attention" if shows else "BlockLayout"
    monkeypatch.setattr(eagle3, name, bug)
    layout = eagle3.BlockLayout(torch.tensor([[9]]), torch.tensor([[True]]), (len(features.context),), B)
    fed = results[9][1]
    with torch.no_grad():
        hidden = tiny_eagle3.hidden(
            model, features.prompt.ids, features.context, layout, lambda step, _: tiny_eagle3.embed(fed[None, step - 1])
        )
    assert ((hidden[:, 0] - results[9][0]).abs().max() > 0.01) == shows


@torch.no_grad()
def test_proposals_for_a_whole_document_are_the_drafters_at_every_anchor(method, model, features, monkeypatch):
    """Also when the document is proposed in several parts; the drafter extends by one token at a time."""
    drafter, expected = method.drafter(model), []
    for anchor in range(1, len(features.context)):
        drafter.extend(features.prompt.ids[anchor - 1 : anchor], features.context[anchor - 1 : anchor])
        expected.append(drafter.propose(int(features.prompt.ids[anchor]), GREEDY)[0])
    anchors = torch.arange(1, len(features.context))
    assert len(set(torch.stack(expected).flatten().tolist())) > 8  # a draft that always says the same would prove little
    assert set(torch.stack(expected).flatten().tolist()) <= set(method.vocabulary.ids.tolist())
    for chains in (256, 7):
        monkeypatch.setattr(eagle3, "PROPOSAL_CHAINS", chains)
        assert torch.equal(method.propose(model, features, anchors), torch.stack(expected))


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
def test_what_the_drafter_draws_from_is_what_the_evaluator_scores(method, model, features):
    """Each step is fed the token that was drawn, not the first choice; a pruned draft draws from the tokens that it has."""
    first_choices = 0
    for anchor in ANCHORS:
        tokens, q, text = drawn(method, model, features, anchor)
        first_choices += int((tokens == q.argmax(-1)).sum())
        torch.testing.assert_close(q.sum(-1), torch.ones(B - 1))
        assert set(q.nonzero()[:, 1].tolist()) <= set(method.vocabulary.ids.tolist()) and q.shape == (B - 1, 64)
        scored = method.text_log_probabilities(model, text, torch.tensor([anchor]), TEMPERATURE)
        torch.testing.assert_close(scored[0], q.gather(1, tokens[:, None])[:, 0].log(), rtol=1e-4, atol=1e-4)
    assert first_choices < len(ANCHORS) * (B - 1)


@torch.no_grad()
def test_a_whole_document_is_scored_in_parts_as_at_once(method, model, features, monkeypatch):
    anchors = torch.arange(1, len(features.context))
    whole = method.text_log_probabilities(model, features, anchors, TEMPERATURE)
    after = features.prompt.ids[(anchors[:, None] + torch.arange(1, B)).clamp(max=len(features.context) - 1)]
    assert torch.equal(whole > -torch.inf, torch.isin(after, method.vocabulary.ids))
    monkeypatch.setattr(eagle3, "PROPOSAL_CHAINS", 7)
    torch.testing.assert_close(method.text_log_probabilities(model, features, anchors, TEMPERATURE), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_cache_holds_committed_rows_only_and_a_reset_forgets_them(tiny_eagle3, features):
    model = lively(tiny_eagle3.skeleton())
    drafter = tiny_eagle3.drafter(model)
    for end, piece in ((6, 6), (7, 1), (11, 4)):
        drafter.extend(features.prompt.ids[end - piece : end], features.context[end - piece : end])
        drafter.propose(int(features.prompt.ids[end]), GREEDY)
        assert {len(rows) for rows in drafter.cache} == {end} and drafter.committed == end
    grown = drafter.cache
    drafter.reset()
    drafter.extend(features.prompt.ids[:11], features.context[:11])
    drafter.propose(int(features.prompt.ids[11]), GREEDY)
    for old, new in zip(grown, drafter.cache, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-5)  # rows come from the target's features, never from a chain


def decoded(oracle, drafter, prompt, tokens: int) -> tuple[Acceptance, list[int]]:
    answer = speculative_decode(oracle, drafter, prompt, tokens, NEVER)
    return Acceptance(B).add_answer(answer.accepted, len(answer.ids)), answer.ids


@pytest.mark.parametrize("seed", range(3))
def test_decoding_is_lossless_and_offline_tau_is_its_tau(method, model, eagle3_oracle, seed):
    """To the last count: steps, histogram and slots of a walk over the finished text, and of the loop that wrote it."""
    prompt = random_prompt(seed, 6 + seed)
    ours, ids = decoded(eagle3_oracle, method.drafter(model), prompt, 60)
    assert ids == plain_decode(eagle3_oracle, prompt, 60, NEVER).ids
    sample = eagle3_oracle.capture(Prompt(0, torch.cat((prompt, torch.tensor(ids))), torch.arange(len(prompt) + 60) >= len(prompt)))
    offline = Acceptance(B)
    for accepted, length in accepted_per_step(method, model, sample):
        offline.add_answer(accepted, length)
    assert torch.equal(offline.counts(), ours.counts())


class Hoarding(Eagle3Drafter):
    """Keeps its chains in the cache: guesses, where servers make the rows anew from the target's features."""

    def _attend(self, q, past):
        out = super()._attend(q, past)
        self.cache = tuple(torch.cat(pair) for pair in zip(self.cache, past[-1], strict=True)) if len(past) > 1 else self.cache
        return out


@torch.no_grad()
def test_planted_chains_in_the_cache_part_the_drafter_from_the_proposals(tiny_eagle3, features):
    model = lively(tiny_eagle3.skeleton())
    expected = tiny_eagle3.propose(model, features, torch.arange(8, 24))
    for kind, same in ((Eagle3Drafter, True), (Hoarding, False)):
        drafter, proposals = kind(model, tiny_eagle3.target, tiny_eagle3.vocabulary, B), []
        for end in range(8, 24):
            start = 0 if end == 8 else end - 1
            drafter.extend(features.prompt.ids[start:end], features.context[start:end])
            proposals.append(drafter.propose(int(features.prompt.ids[end]), GREEDY)[0])
        assert torch.equal(torch.stack(proposals), expected) == same


def test_features_come_from_the_layers_that_the_draft_names_and_the_last_one(tiny_eagle3, eagle3_oracle):
    assert tiny_eagle3.layer_ids == EAGLE3_LAYERS == eagle3_oracle.layer_ids
    assert tiny_eagle3.skeleton().fc.weight.shape == (HIDDEN, 2 * HIDDEN)


def test_an_answer_without_a_prompt_is_refused(tiny_eagle3, features):
    with pytest.raises(ContractError, match="drafts after a prompt only"):
        tiny_eagle3.propose(lively(tiny_eagle3.skeleton()), features, torch.tensor([0, 1]))
