"""Capture backends by name. Each yields, for a prompt, the outputs of the target's captured layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch

from torchspec.capture.registry import BACKENDS, EXTRAS
from torchspec.errors import UserError
from torchspec.extras import install
from torchspec.records import Features, Prompt
from torchspec.target.frozen import FrozenTarget

OWN_DEVICE, SHARED_DEVICE = 0.9, 0.4  # shares of a device's memory for an engine: beside nobody, and beside a trainer or other workers


@dataclass(frozen=True)
class CaptureSpec:
    """What every backend needs to know."""

    folder: Path  # of the target
    layer_ids: tuple[int, ...]  # z-ids, ascending
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    num_devices: int = 1  # tensor parallel size
    memory_fraction: float = SHARED_DEVICE  # of each of these devices: what an engine may take
    max_length: int = 4096  # tokens of the longest prompt
    trust_remote_code: bool = False
    fp8: bool = False  # whoever asks wants fp8, so an engine may round before its states leave the device
    target: FrozenTarget | None = None  # that this process has anyway

    def frozen(self, device: torch.device) -> FrozenTarget:
        """What a check compares with. Where nobody has it, it is read and let go again: 2.3 GiB of Qwen3-8B for one prompt in 1,000."""
        return self.target or FrozenTarget.load(self.folder, self.dtype, device, self.trust_remote_code)


class Capture(Protocol):
    layer_ids: tuple[int, ...]  # z-ids, ascending
    producer: str

    def capture(self, prompt: Prompt) -> Features:
        """Features of one prompt; a pure function of the prompt, so that a resumed run sees the same numbers."""
        ...

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        """Features of one micro-batch's prompts; a pure function of all of them, since other rows round a row differently."""
        ...

    def verify(self, prompts: list[Prompt]) -> None:
        """Raises ContractError unless final norm and head, read from the target's files, give the engine's own next tokens."""
        ...


def open_capture(name: str, spec: CaptureSpec) -> Capture:
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        backend = getattr(import_module(module), attribute)
    except ImportError as error:
        missing = error.name or ""
        if name not in EXTRAS or not missing.startswith(name):
            raise
        asked = f"inference.inference_engine_type={name}"
        if isinstance(error, ModuleNotFoundError) and "." not in missing:
            raise UserError(f"{asked} needs {missing}: {install(name)}") from error
        found = import_module(name).__version__
        raise UserError(f"{asked}: {name} {found} does not fit ({error.msg}): pip install --upgrade {name}") from error
    return backend(spec)
