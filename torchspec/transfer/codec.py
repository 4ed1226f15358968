"""Context features as bytes: what travels, and what lies on disk. bfloat16 and float32 travel bit by bit; fp8 halves the bytes and rounds.

fp8 is e4m3 with one float32 scale per token and layer, [L, K]: layers differ in magnitude by orders, and single tokens by
more (the first one of a text most of all), so a scale shared by either would drown the small in the rounding of the large.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchspec.records import Features, Prompt

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class Wire:
    """Features on their way; the prompt stays with the trainer that asked."""

    data: np.ndarray  # [bytes] uint8
    shape: tuple[int, int]  # of the context, [L, K*H_t]
    dtype: str  # of the data
    original: str  # of the context
    scales: np.ndarray | None  # [L, K] float32, fp8 only
    layer_ids: tuple[int, ...]
    producer: str

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def encode(features: Features, fp8: bool) -> Wire:
    """Rounds where the features are, so that only the small bytes leave the device."""
    context, scales = features.context, None
    original = _name(context.dtype)
    if fp8:
        layers = context.float().unflatten(1, (len(features.layer_ids), -1))  # [L, K, H_t]
        factors = layers.abs().amax(-1).clamp(min=1e-12) / FP8_MAX
        context, scales = (layers / factors[..., None]).to(torch.float8_e4m3fn).flatten(1), factors.cpu().numpy()
    data = context.cpu().contiguous().view(torch.uint8).numpy().reshape(-1)
    return Wire(data, tuple(context.shape), _name(context.dtype), original, scales, features.layer_ids, features.producer)


def decode(wire: Wire, prompt: Prompt, device: torch.device) -> Features:
    """The data may be read-only memory of a store: it is copied to the device, or joined into a batch, and never written."""
    context = _tensor(wire.data).view(getattr(torch, wire.dtype)).view(wire.shape).to(device)
    if wire.scales is not None:
        factors = torch.from_numpy(wire.scales.copy()).to(device)
        layers = context.float().unflatten(1, (len(wire.layer_ids), -1)) * factors[..., None]
        context = layers.flatten(1).to(getattr(torch, wire.original))
    return Features(prompt, context, wire.layer_ids, wire.producer).check_length()


def _tensor(data: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # torch has no read-only tensors and warns where `decode` promises not to write
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(data)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
