"""What is trained is served: the trainer's blocks equal the cached loop; planted bugs show."""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import B, all_valid, answered, lively, make_method, random_prompt
from torchspec.acceptance.sampling import GREEDY
from torchspec.methods.block import attention
from torchspec.methods.block import method as block
from torchspec.nn.attention import BlockLayout, Sight, structured_attention

ANCHORS = [1, 2, 9, 17, 30]
PIECES = {1: [1], 2: [1, 1], 9: [4, 1, 4], 17: [10, 3, 3, 1], 30: [12, 1, 1, 2, 4, 4, 3, 1, 2]}  # committed tokens per step


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
    return structured_attention(*qkv[:5], replace(qkv[5], anchors=qkv[5].anchors + 1), *qkv[6:])


def one_row_early(*qkv):
    return structured_attention(*qkv[:5], replace(qkv[5], anchors=(qkv[5].anchors - 1).clamp(min=0)), *qkv[6:])


class LateBlocks(BlockLayout):
    """Draft rows at anchor+1+k."""

    @property
    def positions(self):
        context, rows = super().positions
        return context, rows + 1


class LateContext(BlockLayout):
    """Context rows counted from one."""

    @property
    def positions(self):
        context, rows = super().positions
        return context + 1, rows


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
    monkeypatch.setattr(attention if name == "tiled_attention" else block, name, bug)
    layout = block.BlockLayout(torch.tensor([[9]]), torch.tensor([[True]]), (len(features.context),), B)
    with torch.no_grad():
        planted = model(*tiny_method.inputs(features.prompt.ids, features.context, layout))
    assert (planted - hidden).abs().max() > 0.01  # a hundred times the tolerance of the comparison


WINDOWS = {"all slide": {"sliding_window": 5}, "one slides": {"sliding_window": 5, "layer_types": ("sliding_attention", "full_attention")}}


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_with_windows_too_the_trainer_block_equals_the_cached_loop(tiny_target, features, options, anchor):
    method = make_method(tiny_target, **options)
    model = lively(method.skeleton())
    hidden, tokens = served(method, model, features, anchor)
    torch.testing.assert_close(trained(method, model, features, anchor), hidden, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(method.propose(model, features, torch.tensor(ANCHORS))[ANCHORS.index(anchor)], tokens)


@pytest.mark.parametrize("planted", [Sight(4, causal=True), Sight(6, causal=True), Sight(5), Sight(causal=True)], ids=str)
@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_planted_windows_off_by_one_and_blocks_that_look_ahead_part_training_from_serving(tiny_target, features, options, planted):
    method = make_method(tiny_target, **options)
    model = lively(method.skeleton())
    hidden, _ = served(method, model, features, 17)
    method.sights = tuple(planted if sight.window else sight for sight in method.sights)
    assert (trained(method, model, features, 17) - hidden).abs().max() > 0.01


@torch.no_grad()
def test_what_lies_before_every_window_changes_nothing(tiny_target, features):
    """Two layers of window 5: a block knows the four rows before its anchor, the first slot's from the first layer on."""
    method = make_method(tiny_target, sliding_window=5)
    model, hidden, context = lively(method.skeleton()), [], features.context.clone()
    context[:13] += 1.0
    for seen in (features, replace(features, context=context)):
        hidden.append(served(method, model, seen, 17)[0])
    assert torch.equal(*hidden)
    context[13] += 1.0
    assert not torch.equal(hidden[0], served(method, model, replace(features, context=context), 17)[0])
