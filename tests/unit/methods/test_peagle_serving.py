"""P-EAGLE's rows as they are trained and as they are served: the trainer's chains equal the cached loop, what a row sees of the tokens;
planted bugs show.
"""

from dataclasses import replace

import pytest
import torch

from tests.unit.methods.cases import CASES, lively_draft
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, MASK, B, all_valid, answered, lively, make_peagle, random_features, random_prompt
from torchspec.acceptance.sampling import GREEDY
from torchspec.errors import ContractError
from torchspec.methods.peagle.generate import PeagleDrafter
from torchspec.nn import chain_attention
from torchspec.nn.attention import WHOLE
from torchspec.training.stream import pack

PIECES = {1: [1], 2: [1, 1], 9: [4, 1, 4], 17: [10, 3, 3, 1], 30: [12, 1, 1, 2, 4, 4, 3, 1, 2]}  # committed tokens per step


@pytest.fixture(params=[name for name in CASES if name.startswith("peagle")], scope="module")
def method(request, tiny_target):
    return CASES[request.param].make(tiny_target)


@pytest.fixture(scope="module")
def features(eagle3_oracle):
    return eagle3_oracle.capture(answered(eagle3_oracle, random_prompt(0, 12), 24))


@torch.no_grad()
def served(method, model, features, kind=PeagleDrafter) -> torch.Tensor:
    """Outputs of the chains after `PIECES` [chains, B-1, H], each after its own steps of the inference loop."""
    chains, kept = [], []
    hook = model.register_forward_hook(lambda _m, _i, out: kept.append(out))
    for anchor, pieces in PIECES.items():
        drafter, end = kind(model, method.target, method.served_vocabulary(model), B, method.mask_token_id), 0
        for piece in pieces:
            drafter.extend(features.prompt.ids[end : end + piece], features.context[end : end + piece])
            end += piece
            drafter.propose(int(features.prompt.ids[end]), GREEDY)
        assert end == anchor
        chains.append(kept[-1])
    hook.remove()
    return torch.stack(chains)


@torch.no_grad()
def trained(method, model, features) -> torch.Tensor:
    layout = all_valid([list(PIECES)], (len(features.context),))
    return method.hidden(model, features.prompt.ids, features.context, (layout,)).view(len(PIECES), B - 1, -1)


def test_trainer_chains_equal_the_cached_loop(method, features):
    model = lively_draft(method)
    torch.testing.assert_close(trained(method, model, features), served(method, model, features), rtol=1e-4, atol=1e-4)  # float32


class Hoarding(PeagleDrafter):
    """Keeps its mask rows in the cache."""

    def _attend(self, layer, new, q, k, v):
        return super()._attend(layer, len(q), q, k, v)


class Forgetful(PeagleDrafter):
    """Its mask rows stand where the last committed row does."""

    def propose(self, last_token, sampler):
        hook = self.model.rotary.register_forward_pre_hook(lambda _m, args: (args[0].clamp(max=int(args[0][-1]) - B + 2), args[1]))
        try:
            return super().propose(last_token, sampler)
        finally:
            hook.remove()


def test_planted_bugs_part_training_from_serving(tiny_target, features, monkeypatch):
    method = make_peagle(tiny_target)
    model = lively(method.skeleton())
    honest = served(method, model, features)
    for kind in (Hoarding, Forgetful):
        assert (served(method, model, features, kind) - honest).abs().max() > 0.01
    monkeypatch.setattr(chain_attention, "CAUSAL", WHOLE)  # mask rows look ahead
    assert (trained(method, model, features) - honest).abs().max() > 0.01


@torch.no_grad()
def test_every_row_of_a_chain_sees_the_tokens_after_the_first_up_to_its_anchor(tiny_target):
    """Row t holds x_{t+1}, so x_0 enters through its features only; the tokens that a chain is to guess are seen by none of its rows."""
    method, lengths, anchors, starts = make_peagle(tiny_target), (9, 6, 12), [[1, 4, 5], [1, 2, 3], [3, 7, 8]], (0, 9, 15)
    model, layout = lively(method.skeleton()), all_valid(anchors, lengths)
    batch = pack([random_features("0" * length, i, HIDDEN * 3, EAGLE3_LAYERS) for i, length in enumerate(lengths)], epoch=0)
    before = method.hidden(model, batch.ids, batch.context, (layout,))
    chains = [(n, anchor) for n in range(3) for anchor in anchors[n]]
    for document, length in enumerate(lengths):
        for t in range(length):
            ids = batch.ids.clone()
            ids[starts[document] + t] = (ids[starts[document] + t] + 1) % MASK
            changed = (method.hidden(model, ids, batch.context, (layout,)) != before).any(-1).view(len(chains), B - 1)
            assert changed.tolist() == [[n == document and 1 <= t <= anchor] * (B - 1) for n, anchor in chains]


@torch.no_grad()
def test_invalid_chains_do_not_touch_valid_ones_and_give_no_nan(tiny_target):
    """Surplus chains of a fixed shape stand at anchor 1, also in a document of one token."""
    method = make_peagle(tiny_target)
    model, sample = (
        lively(method.skeleton()),
        [random_features(mask, i, HIDDEN * 3, EAGLE3_LAYERS) for i, mask in enumerate(("0" * 9, "0"))],
    )
    layout, batch = all_valid([[4, 5], [1, 1]], (9, 1)), pack(sample, epoch=0)
    hidden = method.hidden(model, batch.ids, batch.context, (replace(layout, valid=layout.anchors > 1),)).view(2, 2, B - 1, -1)
    assert torch.isfinite(hidden).all()
    alone = method.hidden(model, *(x[:9] for x in (batch.ids, batch.context)), (all_valid([[4, 5]], (9,)),)).view(2, B - 1, -1)
    torch.testing.assert_close(hidden[0], alone, rtol=1e-5, atol=1e-5)


def test_an_answer_without_a_prompt_is_refused(tiny_target, features):
    method = make_peagle(tiny_target)
    with pytest.raises(ContractError, match="drafts after a prompt only"):
        method.propose(lively(method.skeleton()), features, torch.tensor([0, 1]))
