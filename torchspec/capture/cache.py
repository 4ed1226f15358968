"""Features of earlier prompts kept in the host's memory, so that later epochs cost no target forward."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from torchspec.capture.base import Capture
from torchspec.records import Features, Prompt


class CachedCapture:
    """Keeps what `inner` captured, by the tokens, up to `limit_bytes`. First come, first kept: evicting would miss in every epoch.

    Yields features on `device`, wherever `inner` has them: engines leave theirs on the host.
    """

    def __init__(self, inner: Capture, limit_bytes: int, device: torch.device):
        self.inner, self.limit_bytes, self.device = inner, limit_bytes, device
        self.layer_ids, self.producer = inner.layer_ids, inner.producer
        self.kept: dict[bytes, Features] = {}
        self.bytes = 0

    def capture(self, prompt: Prompt) -> Features:
        tokens = prompt.ids.numpy().tobytes()  # a number does not say what the text is: a served answer bears the one of its prompt
        if tokens in self.kept:
            return replace(self.kept[tokens], prompt=prompt).to(self.device)
        features = self.inner.capture(prompt)
        if self.bytes + features.context.nbytes <= self.limit_bytes:
            self.kept[tokens] = features.to(torch.device("cpu"))
            self.bytes += features.context.nbytes
        return features.to(self.device)

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        """What is kept for later epochs, with other neighbours, is captured alone."""
        if self.limit_bytes == 0:
            return [features.to(self.device) for features in self.inner.capture_batch(prompts)]
        return [self.capture(prompt) for prompt in prompts]
