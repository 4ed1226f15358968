"""Context features as bytes: what travels, and what lies on disk. bfloat16 and float32 travel bit by bit; fp8 halves the bytes and rounds.

fp8 is e4m3 with one float32 scale per token and layer, [L, K]: layers differ in magnitude by orders, and single tokens by
more (the first one of a text most of all), so a scale shared by either would drown the small in the rounding of the large.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchspec.nn.send import send
from torchspec.nn.staging import to_host
from torchspec.records import Features, Prompt, row_sizes

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


@dataclass(frozen=True)
class Wire:
    """Features on their way; the prompt stays with the trainer that asked."""

    data: np.ndarray  # [bytes] uint8
    shape: tuple[int, int]  # of the context, [L, K*H_t]
    dtype: str  # of the data
    scales: np.ndarray | None  # [L, K] float32, fp8 only
    layer_ids: tuple[int, ...]
    producer: str

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)


def fp8_scales(sizes: Tensor) -> Tensor:
    """[L, K] scales of states with these `row_sizes`."""
    return sizes.clamp(min=1e-12) / FP8_MAX


def to_fp8(context: Tensor, scales: Tensor) -> Tensor:
    """[L, K*H_t] rounded, on the device where the states are."""
    layers = context.float().unflatten(1, (scales.shape[1], -1))  # [L, K, H_t]
    return (layers / scales[..., None]).to(torch.float8_e4m3fn).flatten(1)


def encode(features: Features, fp8: bool) -> Wire:
    """Rounds where the features are, so that only the small bytes leave the device; some engines have rounded them already."""
    context, scales = features.context, features.scales
    if fp8 and scales is None:
        scales = fp8_scales(row_sizes(context, len(features.layer_ids)))
        context = to_fp8(context, scales)
    data = to_host(context).contiguous().view(torch.uint8).numpy().reshape(-1)
    scales = None if scales is None else to_host(scales).numpy()
    return Wire(data, tuple(context.shape), _name(context.dtype), scales, features.layer_ids, features.producer)


def decode(wire: Wire, prompt: Prompt, device: torch.device, dtype: torch.dtype) -> Features:
    """dtype: that fp8 is widened to; all else keeps its bits. On the stream that is current, which nobody waits for here.

    The data may be read-only memory of a store: it is copied to the device, or joined into a batch, and never written.
    """
    context = send(_tensor(wire.data), device).view(getattr(torch, wire.dtype)).view(wire.shape)
    if wire.scales is not None:
        scales = send(_tensor(wire.scales), device)
        layers = context.float().unflatten(1, (len(wire.layer_ids), -1)) * scales[..., None]
        context = layers.flatten(1).to(dtype)
    return Features(prompt, context, wire.layer_ids, wire.producer).check_length()


def _tensor(data: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # torch has no read-only tensors and warns where `decode` promises not to write
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(data)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
