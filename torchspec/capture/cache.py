"""Features of earlier prompts kept in memory, so that later epochs cost no target forward."""

from collections.abc import Sequence

from torch import Tensor

from torchspec.capture.base import Capture
from torchspec.records import Features, Prompt


class CachedCapture:
    """Keeps what `inner` captured, up to `limit_bytes`. First come, first kept: evicting would miss in every epoch."""

    def __init__(self, inner: Capture, limit_bytes: int):
        self.inner, self.limit_bytes = inner, limit_bytes
        self.layer_ids, self.producer = inner.layer_ids, inner.producer
        self.kept: dict[int, Tensor] = {}
        self.bytes = 0

    def capture(self, prompt: Prompt) -> Features:
        if prompt.index in self.kept:
            return Features(prompt, self.kept[prompt.index], self.layer_ids, self.producer)
        features = self.inner.capture(prompt)
        if self.bytes + features.context.nbytes <= self.limit_bytes:
            self.kept[prompt.index] = features.context
            self.bytes += features.context.nbytes
        return features

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        """What is kept for later epochs, with other neighbours, is captured alone."""
        if self.limit_bytes == 0:
            return self.inner.capture_batch(prompts)
        return [self.capture(prompt) for prompt in prompts]
