"""Low-precision computation over float32 master weights, in one process; and layers whose activations are computed twice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ComputeIn(nn.Module):
    """Calls `model` with its parameters cast to `dtype`; gradients arrive at the float32 originals."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *args):
        cast = {name: parameter.to(self.dtype) for name, parameter in self.model.named_parameters()}
        return torch.func.functional_call(self.model, cast, args)


class _Forward(nn.Module):
    """A layer's own forward as a module, so that it can be called with other parameters."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.inner = layer, layer.forward

    def forward(self, *args):
        return self.inner(*args)


def recomputed(layer: nn.Module) -> Callable[..., Tensor]:
    """The layer's forward, its activations computed again in the backward pass, with the parameters that it was called with.

    By then `ComputeIn` has put the float32 masters back: they would be multiplied with bfloat16 activations.
    """
    call = _Forward(layer)

    def forward(*args):
        parameters = dict(call.named_parameters())
        return checkpoint(lambda *inputs: torch.func.functional_call(call, parameters, inputs), *args, use_reentrant=False)

    return forward
