"""What the small layouts of test_attention.py do not reach: several mask tiles, no context, other head counts, bfloat16."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

import torchspec.nn.tiled_attention
from torchspec.nn.attention import WHOLE, BlockLayout, Sight, flex, flex_block_mask, structured_attention
from torchspec.nn.tiled_attention import tiled_attention


def random_layout(lengths: tuple[int, ...], count: int, block_size: int, seed: int) -> BlockLayout:
    """`count` blocks per document, a random number of them valid; anchors ascend, invalid ones are 0."""
    g = torch.Generator().manual_seed(seed)
    anchors, valid = torch.zeros(len(lengths), count, dtype=torch.int64), torch.zeros(len(lengths), count, dtype=torch.bool)
    for n, length in enumerate(lengths):
        drawn = torch.randperm(length, generator=g)[: int(torch.randint(1, count + 1, (), generator=g))].sort().values
        anchors[n, : len(drawn)], valid[n, : len(drawn)] = drawn, True
    return BlockLayout(anchors, valid, lengths, block_size)


def rule(layout: BlockLayout, sight: Sight = WHOLE) -> torch.Tensor:
    """[R, T+R], from four sentences: same document, strictly before the anchor, own block, and nothing for an invalid block; and two for
    a layer's sight: fewer than `window` places away, and where it is causal no later slot.
    """
    document = torch.tensor([n for n, length in enumerate(layout.lengths) for _ in range(length)])
    position = torch.tensor([t for length in layout.lengths for t in range(length)])
    rows = []
    blocks = list(itertools.product(range(len(layout.lengths)), range(layout.anchors.shape[1])))
    for n, a in blocks:
        context = (document == n) & (position < layout.anchors[n, a]) & layout.valid[n, a]
        own = torch.tensor([other == (n, a) for other in blocks for _ in range(layout.block_size)])
        rows += [torch.cat((context, own))] * layout.block_size
    asking = (layout.anchors[:, :, None] + torch.arange(layout.block_size)).flatten()
    away = asking[:, None] - torch.cat((position, asking))
    near = torch.ones_like(away, dtype=torch.bool) if sight.window is None else (away < sight.window) & (away > -sight.window)
    return torch.stack(rows) & near & ~(sight.causal & (away < 0))


def tensors(layout: BlockLayout, heads: int, kv_heads: int, size: int, dtype=torch.float32) -> list[torch.Tensor]:
    total, rows = sum(layout.lengths), layout.anchors.numel() * layout.block_size
    g = torch.Generator().manual_seed(1)
    shapes = [(rows, heads, size), (total, kv_heads, size), (total, kv_heads, size), (rows, kv_heads, size), (rows, kv_heads, size)]
    return [torch.randn(shape, generator=g).to(dtype) for shape in shapes]


def dense(q, k_context, v_context, k_block, v_block, visible) -> torch.Tensor:
    groups = q.shape[1] // k_context.shape[1]
    k, v = (torch.cat(pair).repeat_interleave(groups, dim=1) for pair in ((k_context, k_block), (v_context, v_block)))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


LAYOUTS = {
    "several tiles of the mask": random_layout((150, 97, 203), 11, 8, seed=0),
    "block size and lengths that divide nothing": random_layout((131, 1, 2, 60), 7, 5, seed=1),
    "one document, one block": random_layout((40,), 1, 2, seed=2),
    "full tiles": BlockLayout(torch.arange(200, 680, 8).repeat(2, 1), torch.ones(2, 60, dtype=torch.bool), (700, 900), 8),
    "no context anywhere": BlockLayout(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), (4, 6), 4),
    "nothing valid": BlockLayout(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool), (4, 6), 4),
}


# windows inside of a block, as long as one, as long as several, and longer than most documents
SIGHTS = [WHOLE, Sight(causal=True), Sight(3), Sight(8, causal=True), Sight(50, causal=True), Sight(200)]
SIGHT = pytest.mark.parametrize("sight", SIGHTS, ids=lambda s: f"{s.window}{' causal' * s.causal}")


@SIGHT
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_block_mask_is_the_rule_and_its_tiles_skip_nothing_visible(name, sight):
    layout, visible = LAYOUTS[name], rule(LAYOUTS[name], sight)
    mask = flex_block_mask(layout, layout.block_size, layout.block_size, sight)
    query, key = torch.arange(visible.shape[0])[:, None], torch.arange(visible.shape[1])[None]
    assert torch.equal(mask.mask_mod(None, None, query, key), visible)
    tile = mask.BLOCK_SIZE
    padded = torch.zeros(-(-visible.shape[0] // tile[0]) * tile[0], -(-visible.shape[1] // tile[1]) * tile[1], dtype=torch.bool)
    padded[: visible.shape[0], : visible.shape[1]] = visible
    needed = padded.unflatten(0, (-1, tile[0])).unflatten(2, (-1, tile[1])).any(dim=3).any(dim=1)  # tiles that hold a visible pair
    assert torch.equal(mask.to_dense()[0, 0].bool(), needed)


@pytest.mark.parametrize(("slots", "own", "sight"), [(1, 3, WHOLE), (1, 0, WHOLE), *((8, 8, sight) for sight in SIGHTS)])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_tiles_are_those_that_pytorch_finds_by_evaluating_the_rule_for_every_pair(name, slots, own, sight):
    """Partial and full tiles apart, for the forward pass and for the backward pass."""
    layout = LAYOUTS[name]
    ours = flex_block_mask(layout, slots, own, sight)
    theirs = create_block_mask(ours.mask_mod, None, None, *ours.seq_lengths, device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    for ordered in ("kv", "full_kv", "q", "full_q"):
        for got, expected in zip(*(listed(mask, ordered) for mask in (ours, theirs)), strict=True):
            assert got == expected


def listed(mask: BlockMask, ordered: str) -> list[set[int]]:
    """The tiles of every row of tiles."""
    counts, indices = (vars(mask)[f"{ordered}_{name}"][0, 0] for name in ("num_blocks", "indices"))
    return [set(row[:count].tolist()) for count, row in zip(counts.tolist(), indices, strict=True)]


@pytest.mark.parametrize(("heads", "kv_heads", "sight"), [(4, 4, WHOLE), (4, 1, WHOLE), (6, 2, WHOLE), *((6, 2, s) for s in SIGHTS[1:5])])
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("attend", [structured_attention, tiled_attention])
def test_attention_and_gradients_are_a_dense_float64_softmax(monkeypatch, attend, name, heads, kv_heads, sight):
    monkeypatch.setattr(torchspec.nn.tiled_attention, "TILE_ELEMENTS", 8000)  # several tiles in the larger layouts
    layout = LAYOUTS[name]
    ours = [x.requires_grad_() for x in tensors(layout, heads, kv_heads, 8)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out, expected = attend(*ours, layout, sight), dense(*exact, rule(layout, sight))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    out.backward(upstream)
    expected.backward(upstream.double())
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(torch.zeros_like(b) if a.grad is None else a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)


@SIGHT
@pytest.mark.parametrize("name", LAYOUTS)
def test_flex_equals_structured(name, sight):
    layout = LAYOUTS[name]
    inputs = tensors(layout, 4, 2, 16)  # none needs a gradient: flex has no backward pass on a CPU
    expected, mask = structured_attention(*inputs, layout, sight), flex_block_mask(layout, layout.block_size, layout.block_size, sight)
    torch.testing.assert_close(flex(*inputs, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend", [structured_attention, tiled_attention])
@pytest.mark.parametrize("planted", [Sight(7, True), Sight(9, True), Sight(8), Sight(causal=True), WHOLE])
def test_planted_a_window_off_by_one_or_another_direction_is_another_result(attend, planted):
    """SGLang's count, w - 1, in place of Transformers'; and blocks that look ahead."""
    layout = LAYOUTS["several tiles of the mask"]
    inputs = tensors(layout, 4, 2, 16)
    expected = dense(*(x.double() for x in inputs), rule(layout, Sight(8, True)))
    assert (attend(*inputs, layout, Sight(8, True)).double() - expected).abs().max() < 1e-5 < 0.1
    assert (attend(*inputs, layout, planted).double() - expected).abs().max() > 0.1


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_a_cache_needs_the_rows_that_the_first_slot_sees_and_not_one_less(window):
    """Element by element: of 30 context rows, those that any slot of a block behind them sees."""
    for causal in (True, False):
        sight = Sight(window, causal)
        seen = rule(BlockLayout(torch.tensor([[30]]), torch.tensor([[True]]), (30,), 4), sight)[:, :30].any(0).tolist()
        assert seen == [t >= 30 - sight.seen_context(30) for t in range(30)]


def chain_tensors(layout: BlockLayout, own: int) -> list[torch.Tensor]:
    g, chains, total = torch.Generator().manual_seed(4), layout.anchors.numel(), sum(layout.lengths)
    shapes = [(chains, 4, 16), (total, 2, 16), (total, 2, 16), (chains * own, 2, 16), (chains * own, 2, 16)]
    return [torch.randn(shape, generator=g) for shape in shapes]


def chain_rule(layout: BlockLayout, own: int) -> torch.Tensor:
    """[N*A, T + N*A*S]: the rule for blocks with one row that asks and S own rows; element by element from the rule of whole blocks."""
    whole, total = rule(replace(layout, block_size=1)), sum(layout.lengths)
    return torch.cat((whole[:, :total], whole[:, total:].repeat_interleave(own, dim=1)), dim=1)


@pytest.mark.parametrize("own", [0, 1, 3])
@pytest.mark.parametrize("name", ["several tiles of the mask", "block size and lengths that divide nothing"])
def test_a_step_of_a_chain_sees_the_context_before_its_anchor_and_its_own_steps(name, own):
    layout = replace(LAYOUTS[name], anchors=LAYOUTS[name].anchors.clamp(min=1))
    visible, mask = chain_rule(layout, own), flex_block_mask(layout, 1, own)
    query, key = torch.arange(visible.shape[0])[:, None], torch.arange(visible.shape[1])[None]
    assert torch.equal(mask.mask_mod(None, None, query, key), visible)
    inputs, valid = chain_tensors(layout, own), layout.valid.flatten()
    ours, exact = structured_attention(*inputs, layout), dense(*(x.double() for x in inputs), visible)
    torch.testing.assert_close(ours[valid].double(), exact[valid], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(ours).all()  # of surplus chains too: a NaN would reach the gradient
    torch.testing.assert_close(flex(*inputs, mask)[valid], ours[valid], rtol=1e-5, atol=1e-5)
    (tiled, *tiled_grads), (_, *grads) = (attended(attend, inputs, layout) for attend in (tiled_attention, structured_attention))
    torch.testing.assert_close(tiled, ours, rtol=1e-5, atol=1e-5)
    for got, expected in zip(tiled_grads, grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def attended(attend, inputs: list[torch.Tensor], layout: BlockLayout) -> list[torch.Tensor]:
    """The output and the gradients of a fixed upstream."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = attend(*inputs, layout)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype))
    return [out.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]


def test_in_bfloat16_tiles_are_as_near_to_float64_as_the_structured_path():
    """Both round scores, weights and their slopes to bfloat16 for the products and keep the softmax in float32."""
    layout = LAYOUTS["full tiles"]
    inputs = tensors(layout, 6, 2, 16, torch.bfloat16)
    exact = attended(lambda *x: dense(*x[:5], rule(layout)), [x.double() for x in inputs], layout)
    ours, theirs = (attended(attend, inputs, layout) for attend in (tiled_attention, structured_attention))
    for tiled, structured, expected in zip(ours, theirs, exact, strict=True):
        errors = [float((x.double() - expected).norm() / expected.norm()) for x in (tiled, structured)]
        assert errors[0] < 1.1 * errors[1] < 0.02


def test_bfloat16_attention_rounds_its_inputs_and_weights_but_sums_them_in_float32():
    """Scores of size 4 are rounded to 2^-7 before the softmax and move a weight by 1%; averaged over the context little is left."""
    layout = LAYOUTS["several tiles of the mask"]
    inputs = tensors(layout, 4, 2, 16, torch.bfloat16)
    out, expected = structured_attention(*inputs, layout), dense(*(x.double() for x in inputs), rule(layout))
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).norm() / expected.norm() < 0.01
    assert (out.double() - expected).abs().max() < 0.05


def test_packed_positions_count_from_each_documents_start():
    layout = BlockLayout(torch.tensor([[2, 4], [0, 1]]), torch.tensor([[True, True], [True, False]]), (5, 3), 3)
    context, rows = layout.positions
    assert context.tolist() == [0, 1, 2, 3, 4, 0, 1, 2] and layout.starts.tolist() == [0, 5]
    assert rows.tolist() == [2, 3, 4, 4, 5, 6, 0, 1, 2, 1, 2, 3]
