"""The target in this process: loaded when something asks for it, and once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture


@dataclass(frozen=True)
class Here:
    folder: Path  # of the target
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool = False

    @cached_property
    def target(self) -> HFCapture:
        """As for capture, where missing and damaged weights are refused; which layer is kept does not matter."""
        return HFCapture(CaptureSpec(self.folder, (0,), self.dtype, self.device, trust_remote_code=self.trust_remote_code))
