"""Norm, rotation and MLP against Transformers' Qwen3, whose weights and rounding serving engines follow."""

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3MLP,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    apply_rotary_pos_emb,
)

from torchspec.methods.block.model import BlockLayer
from torchspec.nn.layers import MLP, RMSNorm, RotaryEmbedding, rotate

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def config(**values) -> Qwen3Config:
    return Qwen3Config(**{**SHAPE, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, **values})


def normal(*shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rms_norm_rounds_to_bfloat16_as_qwen3_does(scale):
    """The mean of squares is summed in another order, 1.2e-7 of its value; that flips a bfloat16 rounding once in thousands."""
    ours, theirs = RMSNorm(64, 1e-5), Qwen3RMSNorm(64, 1e-5)
    for dtype, differing in ((torch.float32, 1.0), (torch.bfloat16, 1e-3)):
        for module in (ours, theirs):
            module.weight.data = normal(64, dtype=dtype, seed=1)
        x = normal(500, 64, dtype=dtype) * scale
        got, expected = ours(x), theirs(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected, rtol=5e-7 if dtype == torch.float32 else 2**-7, atol=0)
        assert (got != expected).float().mean() <= differing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ROPES)
def test_queries_and_keys_are_turned_bitwise_as_by_qwen3(kind, dtype):
    ours, theirs = (module(config(rope_parameters=dict(ROPES[kind]))) for module in (RotaryEmbedding, Qwen3RotaryEmbedding))
    positions = torch.tensor([0, 1, 2, 63, 64, 65, 400, 511])
    q, k = normal(8, 4, 16, dtype=dtype), normal(8, 2, 16, dtype=dtype, seed=1)
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], *theirs(q, positions[None]))
    rope = ours(positions, dtype)
    for x, turned in zip((q, k), expected, strict=True):
        assert torch.equal(rotate(x, rope), turned[0].transpose(0, 1))


def test_rope_types_differ_from_one_another():
    """Else the test above might compare the default with itself."""
    distinct = [rope for kind, rope in ROPES.items() if kind != "dynamic"]  # which is the default up to the target's length
    tables = [RotaryEmbedding(config(rope_parameters=dict(rope)))(torch.arange(512), torch.float32)[0] for rope in distinct]
    assert all(not torch.equal(a, b) for i, a in enumerate(tables) for b in tables[:i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_is_qwen3s_bitwise(dtype):
    ours, theirs = MLP(64, 96), Qwen3MLP(config())
    ours.load_state_dict(theirs.state_dict())
    x = normal(7, 64, dtype=dtype)
    assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_draft_layer_without_context_is_a_qwen3_layer_without_a_mask(bias):
    """One block of 5 slots at position 11 that sees itself, both ways: names, norms, rotation and residuals agree."""
    settings = config(num_hidden_layers=1, attention_bias=bias, rope_parameters=dict(ROPES["default"]))
    settings._attn_implementation = "eager"
    theirs, ours = Qwen3DecoderLayer(settings, 0), BlockLayer(settings)
    for seed, weight in enumerate(theirs.parameters()):
        weight.copy_(normal(*weight.shape, seed=seed) * 0.2 + (weight.dim() == 1))
    ours.load_state_dict(theirs.state_dict())
    x, positions = normal(5, 64), torch.arange(11, 16)
    expected = theirs(x[None], position_embeddings=Qwen3RotaryEmbedding(settings)(x, positions[None]), attention_mask=None)

    def attend(q, _k, _v, k, v):
        q, k, v = (y.transpose(0, 1)[None] for y in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)

    rotary = RotaryEmbedding(settings)
    got = ours(x, x[:0], (rotary(positions[:0], x.dtype), rotary(positions, x.dtype)), attend)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(got, expected.view_as(got), rtol=1e-5, atol=1e-5)
