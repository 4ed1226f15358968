"""What a block sees, measured: one input is changed, and every block that must not see it keeps its hidden states bitwise."""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import MASK, B, all_valid, lively, random_features
from torchspec.methods.block import attention
from torchspec.nn.attention import BlockLayout, structured_attention
from torchspec.records import Batch
from torchspec.training.stream import pack

SAMPLES = [random_features("0" * length, i) for i, length in enumerate((9, 6, 12))]
ANCHORS, LENGTHS = [[1, 5, 7], [0, 2, 5], [3, 9, 11]], (9, 6, 12)
BATCH, LAYOUT, STARTS = pack(SAMPLES, epoch=0), all_valid(ANCHORS, LENGTHS), (0, 9, 15)


@pytest.fixture(scope="module")
def model(tiny_method):
    return lively(tiny_method.skeleton())


@torch.no_grad()
def hidden(method, model, batch: Batch, layout: BlockLayout = LAYOUT) -> torch.Tensor:
    """[blocks, B*H]"""
    return model(*method.inputs(batch.ids, batch.context, layout)).view(layout.anchors.numel(), -1)


def changed_blocks(method, model, batch: Batch, layout: BlockLayout = LAYOUT) -> list[bool]:
    before, after = hidden(method, model, BATCH, LAYOUT), hidden(method, model, batch, layout)
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def feature_influence(method, model) -> list[list[bool]]:
    """[T][blocks]: does a block change with the features of a token?"""
    rows = []
    for t in range(len(BATCH.ids)):
        context = BATCH.context.clone()
        context[t] += 1.0
        rows.append(changed_blocks(method, model, replace(BATCH, context=context)))
    return rows


def rule(after_anchor: int = 0) -> list[list[bool]]:
    """A block of document n with anchor a sees the features of that document's tokens 0 .. a-1."""
    rows = []
    for document, length in enumerate(LENGTHS):
        for t in range(length):
            rows.append([n == document and t < anchor + after_anchor for n in range(3) for anchor in ANCHORS[n]])
    return rows


def test_a_block_sees_the_features_before_its_anchor_in_its_document_and_no_others(tiny_method, model):
    assert feature_influence(tiny_method, model) == rule()


def test_planted_an_anchor_that_sees_its_own_features_breaks_the_rule(tiny_method, model, monkeypatch):
    def leaking(*qkv):  # `<=` in place of `<`
        return structured_attention(*qkv[:5], replace(qkv[5], anchors=qkv[5].anchors + 1), *qkv[6:])

    monkeypatch.setattr(attention, "tiled_attention", leaking)
    assert feature_influence(tiny_method, model) == rule(after_anchor=1) != rule()


def test_a_block_sees_its_anchors_token_and_no_other_token(tiny_method, model):
    anchor_of = {STARTS[n] + anchor: 3 * n + a for n in range(3) for a, anchor in enumerate(ANCHORS[n])}
    for t in range(len(BATCH.ids)):
        ids = BATCH.ids.clone()
        ids[t] = (ids[t] + 1) % MASK
        assert changed_blocks(tiny_method, model, replace(BATCH, ids=ids)) == [anchor_of.get(t) == block for block in range(9)]


def test_a_block_does_not_see_where_other_blocks_stand(tiny_method, model):
    """The last anchors stay: they set the shape of the products, and another shape may add in another order."""
    moved = all_valid([[2, 5, 7], [1, 2, 5], [6, 9, 11]], LENGTHS)
    assert changed_blocks(tiny_method, model, BATCH, moved) == [True, False, False] * 3


def test_invalid_blocks_do_not_touch_valid_ones_nor_look_at_anything(tiny_method, model):
    """Surplus blocks of a fixed shape: anchor 0, mask tokens only, whatever the document holds."""
    valid = torch.tensor([[True, True, True], [False, True, True], [False, True, True]])
    padded = BlockLayout(torch.where(valid, LAYOUT.anchors, 0), valid, LENGTHS, B)
    changed = torch.tensor(changed_blocks(tiny_method, model, BATCH, padded))
    assert not (changed & valid.flatten()).any()
    other = pack([random_features("0" * length, 10 + i) for i, length in enumerate(LENGTHS)], epoch=0)
    unseen = ~valid.flatten()
    assert torch.equal(hidden(tiny_method, model, BATCH, padded)[unseen], hidden(tiny_method, model, other, padded)[unseen])


@pytest.mark.parametrize("n", range(3))
def test_a_packed_document_is_the_document_alone(tiny_method, model, n):
    together = hidden(tiny_method, model, BATCH).view(3, 3, -1)[n]
    alone = hidden(tiny_method, model, pack([SAMPLES[n]], epoch=0), all_valid([ANCHORS[n]], (LENGTHS[n],)))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)  # float32: the projections are products of other shapes
