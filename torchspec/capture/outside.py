"""What engines share that run the target in processes of their own and leave, for each prompt, its states and one next token."""

from collections.abc import Sequence

from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import NextTokenCheck
from torchspec.capture.shared_memory import States
from torchspec.records import Features, Prompt


class OutsideCapture:
    """K captured layers, and the last layer's output to check the engine's own next token against."""

    def __init__(self, spec: CaptureSpec, engine: str):
        """engine: its name and version."""
        self.layer_ids = spec.layer_ids
        self.producer = f"{engine} {str(spec.dtype).removeprefix('torch.')}"
        self.truth = NextTokenCheck(spec, self.producer)

    def run(self, prompts: Sequence[Prompt]) -> tuple[list[States], list[int]]:
        """What the engine left of each prompt, and its next token."""
        raise NotImplementedError

    def capture(self, prompt: Prompt) -> Features:
        return self.capture_batch([prompt])[0]

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        states, tokens = self.run(prompts)
        self.truth.watch([rows.last for rows in states], tokens)
        return [rows.features(prompt, self.layer_ids, self.producer) for prompt, rows in zip(prompts, states, strict=True)]

    def verify(self, prompts: list[Prompt]) -> None:
        states, tokens = self.run(prompts)
        self.truth.compare([rows.last for rows in states], tokens)
        self.truth.conclude()
