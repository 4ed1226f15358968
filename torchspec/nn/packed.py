"""Frozen matrices laid out once as the CPU's bfloat16 kernels read them; a plain product lays its matrix out again every time.

The kernels are the same, and so is every bit of the result (tests/unit/nn/test_packed.py). Two thirds of a decoding step of a small
model on a CPU are products with few rows, where laying out costs more than multiplying.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchspec.nn.layers import TokenReadout

HINT_ROWS = 8  # what the layout is chosen for: the rows of a verification


class PackedLinear(nn.Module):
    """A frozen nn.Linear whose weight lies packed; models that read it themselves (Jamba, Mamba) have it laid out plain each time."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = pack(linear.weight.detach())

    @property
    def weight(self) -> Tensor:
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        return packed_product(x, self.packed, self.bias)


def pack_linears(model: nn.Module) -> nn.Module:
    """Replaces the linear layers of a frozen model where that helps; the model is only good for inference afterwards."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in (nn.Linear, TokenReadout) and packs(child.weight):
                setattr(module, name, PackedLinear(child))
    return model


def packs(weight: Tensor) -> bool:
    """Whether a packed layout exists for this matrix on this machine."""
    here = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    return here and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def product(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x [..., I] -> x @ weight.T + bias [..., O], for a frozen weight [O, I]."""
    if not packs(weight):
        return lambda x: nn.functional.linear(x, weight, bias)
    packed = pack(weight)
    return lambda x: packed_product(x, packed, bias)


def pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, HINT_ROWS)


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
