"""What a target does to its logits after the head: Granite and Cohere scale them, Gemma caps them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LogitLaw:
    """x -> scale x, or cap tanh(scale x / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """In place, on logits as they come from the head."""
        if self.cap is not None:
            return logits.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return logits if self.scale == 1.0 else logits.mul_(self.scale)


AS_THEY_COME = LogitLaw()
