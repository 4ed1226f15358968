"""What the machine can do at best, and what features cost on their way to it."""

import sys
from dataclasses import replace

import torch
import transformers
from gpu.place import GIB, Place, relative
from torch import Tensor

from torchspec.records import Features, Prompt
from torchspec.transfer.codec import decode, encode

LAYER_IDS = (1, 9, 17, 25, 33)


def environment(place: Place) -> dict:
    n = place.pick(8192, 256)
    a, b = place.normal(n, n), place.normal(n, n)
    big = torch.empty(place.pick(2 * GIB, 1 << 20), dtype=torch.uint8, device=place.device)
    copied, host = torch.empty_like(big), torch.empty(place.pick(84_000_000, 84_000), dtype=torch.uint8)
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    numbers = {
        **versions,
        "matmul_tflops": 2 * n**3 / place.seconds(lambda: a @ b) / 1e12,
        "copy_gb_s": 2 * big.numel() / place.seconds(lambda: copied.copy_(big)) / 1e9,
        "to_device_gb_s": host.numel() / place.seconds(lambda: host.to(place.device)) / 1e9,
    }
    return numbers | _card(place, host) if place.cuda else numbers


def _card(place: Place, host: Tensor) -> dict:
    import triton

    pinned, card = host.pin_memory(), torch.cuda.get_device_properties(0)
    return {
        "device": card.name, "memory_gib": card.total_memory / GIB, "triton": triton.__version__, "cuda": torch.version.cuda,
        "pinned_to_device_gb_s": host.numel() / place.seconds(lambda: pinned.to(place.device, non_blocking=True)) / 1e9,
    }  # fmt: skip


def transfer(place: Place) -> dict:
    """2,048 tokens of Qwen3-8B, five layers in bfloat16: 84 MB."""
    tokens, width = place.pick(2048, 64), place.pick(4096, 64)
    prompt = Prompt(0, torch.arange(tokens), torch.arange(tokens) >= 1)
    features = Features(prompt, place.normal(tokens, width * len(LAYER_IDS)), LAYER_IDS, "random")
    on_host = replace(features, context=features.context.cpu())
    plain, small = encode(features, fp8=False), encode(features, fp8=True)
    arrived, rounded = (decode(wire, prompt, place.device, torch.bfloat16).context for wire in (plain, small))
    ways = {
        "encode": lambda: encode(features, fp8=False),
        "decode": lambda: decode(plain, prompt, place.device, torch.bfloat16),
        "encode fp8 on the device": lambda: encode(features, fp8=True),
        "encode fp8 on the host": lambda: encode(on_host, fp8=True),
        "decode fp8": lambda: decode(small, prompt, place.device, torch.bfloat16),
        **(_pinned(features.context, on_host.context) if place.cuda else {}),
    }
    error = relative(rounded, features.context)
    return {
        "ok": torch.equal(arrived, features.context) and error < 0.05,  # e4m3 keeps three bits: 0.03 in the mean
        "mb": plain.nbytes / 1e6, "fp8_mb": small.nbytes / 1e6, "fp8_error": error,
        "ms": {name: 1000 * place.seconds(way, times=5, warm_up=1) for name, way in ways.items()},
    }  # fmt: skip


def _pinned(context: Tensor, host: Tensor) -> dict:
    """What encode and decode would cost through pinned memory; and what pinning itself does."""
    pinned = host.pin_memory()
    return {
        "device to pinned": lambda: pinned.copy_(context, non_blocking=True),
        "pinned to device": lambda: context.copy_(pinned, non_blocking=True),
        "pageable to pinned": lambda: pinned.copy_(host),
        "pin": lambda: host.pin_memory(),
    }
