"""Attention of context rows and of the blocks behind them: tiles and FlexAttention against a dense softmax, the mask against its rule."""

import itertools

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from tests.unit.nn.test_block_attention import listed, random_layout
from torchspec.nn.attention import BlockLayout, flex
from torchspec.nn.chain_attention import causal, chain_attention, chain_mask

CPU = torch.device("cpu")
LAYOUTS = {
    "several tiles, three lengths": [random_layout((70, 41, 90), 5, size, seed=size) for size in (1, 4, 7)],
    "one document, one block": [random_layout((40,), 1, 2, seed=2)],
    "some documents have none of a length": [random_layout((9, 1, 6), 3, size, seed=size) for size in (2, 5)],
    "context alone": [],
}


def lengths_of(groups: list[BlockLayout]) -> tuple[int, ...]:
    return groups[0].lengths if groups else (5, 7)


def rule(groups: list[BlockLayout]) -> torch.Tensor:
    """[rows, rows], from its sentences: a context row sees its document up to itself; a row of a block the document's rows before its
    anchor, and its own block up to itself; an invalid block nothing but itself.
    """
    rows = [("context", n, t) for n, length in enumerate(lengths_of(groups)) for t in range(length)]
    for g, layout in enumerate(groups):
        blocks = itertools.product(*map(range, (*layout.anchors.shape, layout.block_size)))
        rows += [((g, n, a), n, slot) for n, a, slot in blocks]

    def sees(query: tuple, key: tuple) -> bool:
        (kind, document, place), (other, its_document, its_place) = query, key
        if kind == other:
            return document == its_document and its_place <= place
        if kind == "context" or other != "context" or document != its_document:
            return False
        g, n, a = kind
        return bool(groups[g].valid[n, a]) and its_place < int(groups[g].anchors[n, a])

    return torch.tensor([[sees(query, key) for key in rows] for query in rows])


@pytest.fixture(scope="module", params=LAYOUTS)
def case(request) -> tuple[list[BlockLayout], torch.Tensor]:
    return LAYOUTS[request.param], rule(LAYOUTS[request.param])


def tensors(rows: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(rows, heads, 8, generator=g) for heads in (4, 2, 2)]


def dense(q, k, v, visible) -> torch.Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


def test_the_mask_is_the_rule_and_its_tiles_are_those_that_pytorch_finds(case):
    groups, visible = case
    mask = chain_mask(lengths_of(groups), tuple(groups), CPU)
    query, key = torch.arange(len(visible))[:, None], torch.arange(len(visible))[None]
    assert torch.equal(mask.mask_mod(None, None, query, key), visible)
    theirs = create_block_mask(mask.mask_mod, None, None, *mask.seq_lengths, device="cpu")
    assert mask.seq_lengths == theirs.seq_lengths == visible.shape
    for ordered in ("kv", "full_kv", "q", "full_q"):
        assert listed(mask, ordered) == listed(theirs, ordered)


def test_attention_and_gradients_are_a_dense_float64_softmax(case):
    groups, visible = case
    ours = [x.requires_grad_() for x in tensors(len(visible))]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out, expected = chain_attention(lengths_of(groups), tuple(groups), CPU)(*ours), dense(*exact, visible)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    out.backward(upstream)
    expected.backward(upstream.double())
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)
    total, inputs = sum(lengths_of(groups)), [x.detach() for x in ours]  # flex has no backward pass on a CPU
    parts = (inputs[0], *(x[part] for part in (slice(total), slice(total, None)) for x in inputs[1:]))
    flexed = flex(*parts, chain_mask(lengths_of(groups), tuple(groups), CPU))
    torch.testing.assert_close(flexed.double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_last_rows_of_a_text_attend_as_they_do_within_all_of_it():
    q, k, v = tensors(9)
    torch.testing.assert_close(causal(q[5:], k, v), causal(q, k, v)[5:])
    torch.testing.assert_close(causal(q, k, v), dense(q, k, v, torch.ones(9, 9, dtype=torch.bool).tril()))
