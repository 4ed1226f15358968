"""What a draft sees of the features, for every method: one token's are changed, and every block that must not see them keeps its hidden
states bitwise, while every row of the others changes. What else each method sees: test_METHOD_visibility.py.
"""

from dataclasses import replace

import pytest
import torch

from tests.unit.methods.cases import CASES, lively_draft
from tests.unit.tiny import HIDDEN, LAYERS, all_valid, random_features
from torchspec.nn.attention import structured_attention
from torchspec.training.stream import pack

LENGTHS, ANCHORS = (9, 6, 12), [[1, 4, 5], [1, 2, 3], [3, 7, 8]]
LAYOUT = all_valid(ANCHORS, LENGTHS)
READ = HIDDEN * len(LAYERS)  # features that a draft reads; what follows, a last layer's state, is for the loss


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def method(case, tiny_target):
    return case.make(tiny_target)


@pytest.fixture(scope="module")
def model(method):
    return lively_draft(method)


def documents(case, order=range(3)):
    """A batch of these documents."""
    return pack([random_features("0" * LENGTHS[n], n, HIDDEN * len(case.layers), case.layers) for n in order], epoch=0)


@torch.no_grad()
def influence(case, method, model) -> list[list[list[bool]]]:
    """[T][blocks][rows]: does a row change with the features of a token?"""
    batch, found = documents(case), []
    before = case.states(method, model, batch, LAYOUT)
    for t in range(len(batch.ids)):
        context = batch.context.clone()
        context[t, :READ] += 1.0
        found.append((case.states(method, model, replace(batch, context=context), LAYOUT) != before).any(-1).tolist())
    return found


def rule(case, rows: int, late: int = 0) -> list[list[list[bool]]]:
    """A block of document n with anchor a sees the features of that document's tokens 0 .. a-1, as far as its layers' windows reach."""
    tokens = [(document, t) for document, length in enumerate(LENGTHS) for t in range(length)]
    blocks = [(n, anchor + late) for n in range(3) for anchor in ANCHORS[n]]
    return [
        [known(case, rows, anchor - t) if n == document and t < anchor else [False] * rows for n, anchor in blocks]
        for document, t in tokens
    ]


def known(case, rows: int, before: int) -> list[bool]:
    """Which rows of a block know, after all layers, what stands so many places before its anchor: directly, or from a slot that did."""
    state = [False] * rows
    for window in case.windows:
        if window is None:
            state = [True] * rows
        else:
            state = [k + before < window or any(state[j] for j in range(max(0, k - window + 1), k + 1)) for k in range(rows)]
    return state


def test_a_block_sees_the_features_before_its_anchor_in_its_document_and_no_others(case, method, model):
    found = influence(case, method, model)
    assert found == rule(case, len(found[0][0]))


def test_planted_an_anchor_that_sees_its_own_features_breaks_the_rule(case, method, model, monkeypatch):
    def leaking(*qkv):  # `<=` in place of `<`
        return structured_attention(*qkv[:5], replace(qkv[5], anchors=qkv[5].anchors + 1), *qkv[6:])

    monkeypatch.setattr(case.module, "tiled_attention", leaking)
    found = influence(case, method, model)
    right, late = (rule(case, len(found[0][0]), late) for late in (0, 1))
    for t, blocks in enumerate(right):
        late[t] = [known[: case.of_context] + leaked[case.of_context :] for known, leaked in zip(blocks, late[t], strict=True)]
    assert found == late != right


@torch.no_grad()
@pytest.mark.parametrize("n", range(3))
def test_a_packed_document_is_the_document_alone(case, method, model, n):
    together = case.states(method, model, documents(case), LAYOUT)[3 * n : 3 * n + 3]
    alone = case.states(method, model, documents(case, [n]), all_valid([ANCHORS[n]], (LENGTHS[n],)))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)  # float32: the projections are products of other shapes


@torch.no_grad()
def test_a_state_that_only_the_loss_needs_is_no_input_of_the_draft(case, method, model):
    batch = documents(case)
    context = batch.context.clone()
    context[:, READ:] += 1.0
    assert torch.equal(case.states(method, model, batch, LAYOUT), case.states(method, model, replace(batch, context=context), LAYOUT))
