"""What a block sees of tokens and other blocks: one is changed, and every block that must not see it keeps its hidden states bitwise.

What it sees of features: test_visibility.py.
"""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import MASK, B, all_valid, lively, random_features
from torchspec.nn.attention import BlockLayout
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
