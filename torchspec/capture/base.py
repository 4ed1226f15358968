"""Capture backends by name. Each yields, for a prompt, the outputs of the target's captured layers."""

from importlib import import_module
from typing import Protocol

from torchspec.errors import UserError
from torchspec.records import Features, Prompt

BACKENDS = {"hf": "torchspec.capture.hf:HFCapture"}


class Capture(Protocol):
    layer_ids: tuple[int, ...]  # z-ids, ascending
    producer: str

    def capture(self, prompt: Prompt) -> Features:
        """Features of one prompt; a pure function of the prompt, so that a resumed run sees the same numbers."""
        ...


def backend_class(name: str) -> type:
    if name not in BACKENDS:
        raise UserError(f"inference.inference_engine_type={name!r} is not available; choose one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(import_module(module), attribute)
