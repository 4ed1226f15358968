"""A packed matrix gives the plain product bit for bit, so that packing can change neither a token nor a count."""

import pytest
import torch
from torch import nn

from torchspec.nn.packed import PackedLinear, pack_linears, packs, product

SHAPES = [(64, 64), (192, 576), (1536, 576), (576, 1536), (49152, 576)]  # [O, I]; the latter are SmolLM2's


@pytest.mark.parametrize("rows", [1, 2, 6, 48, 300])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_bit_is_that_of_the_plain_product(shape, rows, dtype):
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=g).to(dtype), torch.randn(2, rows, shape[1], generator=g).to(dtype)
    bias = torch.randn(shape[0], generator=g).to(dtype) if shape[0] < 1000 else None
    with torch.inference_mode():
        assert torch.equal(product(weight, bias)(x), nn.functional.linear(x, weight, bias))


def test_only_frozen_linear_layers_in_bfloat16_are_replaced_and_the_rest_of_the_model_stays():
    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 32), nn.Sequential(nn.SiLU(), nn.Linear(32, 8, bias=False)))
    assert pack_linears(model) is model and type(model[1]) is nn.Linear  # float32 has no packed layout here
    ids, plain = torch.arange(8), model.bfloat16().requires_grad_(False)(torch.arange(8))
    packed = pack_linears(model)
    assert (type(packed[1]) is PackedLinear) == packs(torch.empty(2, 2, dtype=torch.bfloat16))
    assert torch.equal(packed(ids), plain) and type(packed[0]) is nn.Embedding


def test_a_model_that_reads_the_matrix_or_its_size_itself_gets_them():
    linear = nn.Linear(20, 48).bfloat16().requires_grad_(False)
    weight, bias = linear.weight.clone(), linear.bias.clone()
    packed = pack_linears(nn.Sequential(linear))[0]
    assert torch.equal(packed.weight, weight) and torch.equal(packed.bias, bias)
    assert (packed.in_features, packed.out_features) == (20, 48)
