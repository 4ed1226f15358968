"""Both attention paths against the rule written out, and against a dense float64 softmax."""

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from torchspec.nn.attention import BlockLayout, flex, flex_block_mask, structured_attention
from torchspec.nn.layers import RMSNorm, RotaryEmbedding, rotate

B, HEADS, KV_HEADS, SIZE = 4, 4, 2, 16
LENGTHS = (9, 5, 14)
ANCHORS = torch.tensor([[2, 5, 8], [1, 3, 0], [0, 6, 13]])
VALID = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
LAYOUT = BlockLayout(ANCHORS, VALID, LENGTHS, B)
T, R = sum(LENGTHS), ANCHORS.numel() * B


def rule() -> torch.Tensor:
    """[R, T+R]: the four sentences of the docstring, one element at a time."""
    document = [n for n, length in enumerate(LENGTHS) for _ in range(length)]
    position = [t for length in LENGTHS for t in range(length)]
    visible = torch.zeros(R, T + R, dtype=torch.bool)
    for q in range(R):
        block = q // B
        n, a = divmod(block, ANCHORS.shape[1])
        for key in range(T + R):
            if key >= T:
                visible[q, key] = (key - T) // B == block
            elif VALID[n, a]:
                visible[q, key] = document[key] == n and position[key] < ANCHORS[n, a]
    return visible


def tensors(dtype=torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(R, HEADS, SIZE), (T, KV_HEADS, SIZE), (T, KV_HEADS, SIZE), (R, KV_HEADS, SIZE), (R, KV_HEADS, SIZE)]
    return [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def dense(q, k_context, v_context, k_block, v_block, visible) -> torch.Tensor:
    k, v = (torch.cat(pair).repeat_interleave(HEADS // KV_HEADS, dim=1) for pair in ((k_context, k_block), (v_context, v_block)))
    scores = torch.einsum("qhd,khd->hqk", q, k) * SIZE**-0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), v)


def test_the_block_mask_is_the_rule_element_by_element():
    mask = flex_block_mask(LAYOUT)
    got = [[bool(mask.mask_mod(None, None, torch.tensor(q), torch.tensor(k))) for k in range(T + R)] for q in range(R)]
    assert torch.equal(torch.tensor(got), rule())


def test_structured_attention_and_its_gradients_equal_a_dense_float64_softmax():
    ours, reference = tensors(), tensors(torch.float64)
    out, expected = structured_attention(*ours, LAYOUT), dense(*reference, rule())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(g)
    expected.backward(g.double())
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)


def test_flex_equals_structured():
    with torch.no_grad():  # without CUDA only the forward exists
        inputs = [tensor.detach() for tensor in tensors()]
        torch.testing.assert_close(flex(*inputs, flex_block_mask(LAYOUT)), structured_attention(*inputs, LAYOUT), rtol=1e-5, atol=1e-5)


def test_a_context_that_includes_the_anchor_would_be_noticed():
    visible = rule()
    leaking = visible.clone()
    leaking[0, ANCHORS[0, 0]] = True  # `<=` in place of `<`
    inputs = tensors(torch.float64)
    assert not torch.allclose(dense(*inputs, leaking)[0], dense(*inputs, visible)[0], rtol=1e-3)


def test_rms_norm_is_qwen3s_bitwise():
    ours, theirs = RMSNorm(64, 1e-6), Qwen3RMSNorm(64, 1e-6)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(7, 64, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
        for module in (ours, theirs):
            module.weight.data = weight.to(dtype)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-6)  # one rounding of bf16


ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("kind", ROPES)
def test_positions_are_rotated_as_the_target_rotates_them(kind):
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    rope = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    ours = RotaryEmbedding(Qwen3Config(rope_parameters=dict(rope), **shape))
    theirs = LlamaRotaryEmbedding(LlamaConfig(rope_parameters=dict(rope), **shape))
    positions = torch.tensor([0, 1, 63, 64, 400])
    x = torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = theirs(x, positions[None])
    expected, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    assert torch.equal(rotate(x, ours(positions, torch.float32)), expected[0].transpose(0, 1))
