"""Numbers that are none, in every type that weights come in."""

import pytest
import torch

from torchspec.errors import ContractError
from torchspec.files.finite import check_finite, is_finite

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_nan_among_numbers_is_found_and_the_largest_numbers_are_numbers(dtype):
    largest = torch.full((3, 5), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)  # their sum overflows
    assert is_finite(largest) and is_finite(torch.zeros(0).to(dtype))
    broken = torch.ones(3, 5)
    broken[2, 4] = float("nan")
    assert not is_finite(broken.to(dtype))


@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype != torch.float8_e4m3fn], ids=str)  # it has no infinity
def test_infinities_are_found_also_where_their_sum_cancels(dtype):
    assert not is_finite(torch.tensor([1.0, float("inf")]).to(dtype))
    assert not is_finite(torch.tensor([float("-inf"), 1.0, float("inf")]).to(dtype))


def test_whole_numbers_are_finite_and_the_broken_ones_are_named():
    tensors = {"d2t": torch.tensor([2**62, 2**62]), "norm": torch.tensor([float("nan")]), "head": torch.ones(2)}
    with pytest.raises(ContractError, match="^a.safetensors: NaN or infinity in norm; fetch it again$"):
        check_finite(tensors, "a.safetensors", "fetch it again")
    with pytest.raises(ContractError, match="in a, b, c and 2 more;"):
        check_finite(dict.fromkeys("abcde", torch.tensor(float("inf"))), "a.safetensors", "fetch it again")
