"""What is trained is served: the trainer's blocks equal the cached loop, its proposals the drafter's; planted bugs show."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import LAYERS, B, all_valid, answered, lively, random_prompt
from torchspec.evaluate import sampling
from torchspec.evaluate.sampling import GREEDY, Sampler
from torchspec.methods.dflash import method as dflash
from torchspec.nn.attention import BlockLayout, structured_attention
from torchspec.records import Features, Prompt

ANCHORS = [1, 2, 9, 17, 30]
PIECES = {1: [1], 2: [1, 1], 9: [4, 1, 4], 17: [10, 3, 3, 1], 30: [12, 1, 1, 2, 4, 4, 3, 1, 2]}  # committed tokens per step
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def model(tiny_method):
    return lively(tiny_method.skeleton())


@pytest.fixture(scope="module")
def features(tiny_oracle):
    return tiny_oracle.capture(answered(tiny_oracle, random_prompt(0, 12), 24))


@torch.no_grad()
def trained(method, model, features, anchor: int) -> torch.Tensor:
    """The trainer's hidden states of one block [B, H], computed in a packed batch of all ANCHORS."""
    layout = all_valid([ANCHORS], (len(features.context),))
    hidden = model(*method.inputs(features.prompt.ids, features.context, layout))
    return hidden.view(len(ANCHORS), B, -1)[ANCHORS.index(anchor)]


@torch.no_grad()
def served(method, model, features, anchor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [B, H] and tokens [B-1] of the same block after `PIECES[anchor]` steps of the inference loop."""
    drafter, kept = method.drafter(model), []
    hook = model.norm.register_forward_hook(lambda _m, _i, out: kept.append(out))
    end = 0
    for piece in PIECES[anchor]:
        drafter.extend(features.prompt.ids[end : end + piece], features.context[end : end + piece])
        end += piece
        tokens, _ = drafter.propose(int(features.prompt.ids[end]), GREEDY)
    hook.remove()
    assert end == anchor
    return kept[-1], tokens


@pytest.mark.parametrize("anchor", ANCHORS)
def test_trainer_block_equals_the_cached_loop(tiny_method, model, features, anchor):
    hidden, tokens = served(tiny_method, model, features, anchor)
    ours = trained(tiny_method, model, features, anchor)
    torch.testing.assert_close(ours, hidden, rtol=1e-4, atol=1e-4)  # float32; the sums run in another order
    torch.testing.assert_close(ours @ tiny_method.target.head.T, hidden @ tiny_method.target.head.T, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(tiny_method.propose(model, features, torch.tensor(ANCHORS))[ANCHORS.index(anchor)], tokens)


def one_row_late(*qkv):
    """The anchor's own features are visible: `<=` in place of `<`."""
    return structured_attention(*qkv[:5], replace(qkv[5], anchors=qkv[5].anchors + 1))


def one_row_early(*qkv):
    return structured_attention(*qkv[:5], replace(qkv[5], anchors=(qkv[5].anchors - 1).clamp(min=0)))


class LateBlocks(BlockLayout):
    """Draft rows at anchor+1+k."""

    @property
    def positions(self):
        context, block = super().positions
        return context, block + 1


class LateContext(BlockLayout):
    """Context rows counted from one."""

    @property
    def positions(self):
        context, block = super().positions
        return context + 1, block


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("tiled_attention", one_row_late),
        ("tiled_attention", one_row_early),
        ("BlockLayout", LateBlocks),
        ("BlockLayout", LateContext),
    ],
)
def test_planted_rows_and_positions_off_by_one_part_training_from_serving(tiny_method, model, features, monkeypatch, name, bug):
    hidden, _ = served(tiny_method, model, features, 9)
    torch.testing.assert_close(trained(tiny_method, model, features, 9), hidden, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(dflash, name, bug)
    layout = dflash.BlockLayout(torch.tensor([[9]]), torch.tensor([[True]]), (len(features.context),), B)
    with torch.no_grad():
        planted = model(*tiny_method.inputs(features.prompt.ids, features.context, layout))
    assert (planted - hidden).abs().max() > 0.01  # a hundred times the tolerance of the comparison


@torch.no_grad()
def test_proposals_for_a_whole_document_are_the_drafters_at_every_anchor(tiny_method, model, features, monkeypatch):
    """Also when the document is proposed in several parts; the drafter extends by one token at a time."""
    drafter, expected = tiny_method.drafter(model), []
    for anchor in range(1, len(features.context)):
        drafter.extend(features.prompt.ids[anchor - 1 : anchor], features.context[anchor - 1 : anchor])
        expected.append(drafter.propose(int(features.prompt.ids[anchor]), GREEDY)[0])
    anchors = torch.arange(1, len(features.context))
    assert len(set(torch.stack(expected).flatten().tolist())) > 10  # a draft that always says the same would prove little
    for blocks, rows in itertools.product((256, 7, 1), (256, 5)):
        monkeypatch.setattr(dflash, "PROPOSAL_BLOCKS", blocks)
        monkeypatch.setattr(dflash, "PROPOSAL_ROWS", rows)
        assert torch.equal(tiny_method.propose(model, features, anchors), torch.stack(expected))


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
def test_what_the_drafter_draws_from_is_what_the_evaluator_scores(tiny_method, model, features):
    first_choices = 0
    for anchor in ANCHORS:
        tokens, q, text = drawn(tiny_method, model, features, anchor)
        first_choices += int((tokens == q.argmax(-1)).sum())
        torch.testing.assert_close(q.sum(-1), torch.ones(B - 1))
        scored = tiny_method.text_log_probabilities(model, text, torch.tensor([anchor]), TEMPERATURE)
        torch.testing.assert_close(scored[0], q.gather(1, tokens[:, None])[:, 0].log(), rtol=1e-4, atol=1e-4)
    assert first_choices < len(ANCHORS) * (B - 1)


@torch.no_grad()
def test_a_whole_document_is_scored_in_parts_as_at_once(tiny_method, model, features, monkeypatch):
    """And a place beyond the end of the text, which means nothing, harms no other."""
    anchors = torch.arange(1, len(features.context))
    whole = tiny_method.text_log_probabilities(model, features, anchors, TEMPERATURE)
    assert whole.shape == (len(anchors), B - 1) and (whole < 0).all()
    monkeypatch.setattr(dflash, "PROPOSAL_BLOCKS", 7)
    monkeypatch.setattr(sampling, "HEAD_ROWS", 5)
    torch.testing.assert_close(tiny_method.text_log_probabilities(model, features, anchors, TEMPERATURE), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_cache_holds_committed_rows_only_and_a_reset_forgets_them(tiny_method, model, features):
    drafter = tiny_method.drafter(model)
    for end, piece in ((6, 6), (7, 1), (11, 4)):
        drafter.extend(features.prompt.ids[end - piece : end], features.context[end - piece : end])
        drafter.propose(int(features.prompt.ids[end]), GREEDY)
        assert {len(rows) for layer in drafter.cache for rows in layer} == {end} and drafter.committed == end
    grown = list(drafter.cache)
    drafter.reset()
    drafter.extend(features.prompt.ids[:11], features.context[:11])
    drafter.propose(int(features.prompt.ids[11]), GREEDY)
    for old, new in zip(grown, drafter.cache, strict=True):
        torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-5)  # keys carry their positions, so these are right as well


def test_features_come_from_the_layers_that_the_draft_names(tiny_method, tiny_oracle):
    assert tiny_method.layer_ids == LAYERS == tiny_oracle.layer_ids
    assert tiny_method.skeleton().fc.weight.shape == (32, 2 * 32)
