"""What is trained is served: the trainer's chains equal the cached loop; planted bugs show."""

from dataclasses import replace

import pytest
import torch

from tests.unit.methods.cases import CASES, lively_draft
from tests.unit.tiny import B, all_valid, answered, lively, random_prompt
from torchspec.acceptance.sampling import GREEDY
from torchspec.errors import ContractError
from torchspec.methods.eagle3 import method as eagle3
from torchspec.methods.eagle3.generate import Eagle3Drafter
from torchspec.nn.attention import BlockLayout, structured_attention

ANCHORS = [1, 2, 9, 17, 30]
PIECES = {1: [1], 2: [1, 1], 9: [4, 1, 4], 17: [10, 3, 3, 1], 30: [12, 1, 1, 2, 4, 4, 3, 1, 2]}  # committed tokens per step


@pytest.fixture(params=[name for name in CASES if name.lower().startswith("eagle")], scope="module")
def method(request, tiny_target):
    return CASES[request.param].make(tiny_target)


@pytest.fixture(scope="module")
def model(method):
    return lively_draft(method)


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
        assert torch.equal(method.vocabulary.largest(method.vocabulary.project(ours[:, i])), tokens)
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


def test_an_answer_without_a_prompt_is_refused(tiny_eagle3, features):
    with pytest.raises(ContractError, match="drafts after a prompt only"):
        tiny_eagle3.propose(lively(tiny_eagle3.skeleton()), features, torch.tensor([0, 1]))
