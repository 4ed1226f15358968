"""Low-precision computation over float32 master weights, in one process."""

import torch
from torch import nn


class ComputeIn(nn.Module):
    """Calls `model` with its parameters cast to `dtype`; gradients arrive at the float32 originals."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, *args):
        cast = {name: parameter.to(self.dtype) for name, parameter in self.model.named_parameters()}
        return torch.func.functional_call(self.model, cast, args)
