"""A walk whose slots add to the head's logits what a small state knows: base + factor @ readout.T.

The factor [n, E] of a slot comes from the tokens before it; the readout [V_d, E] is the same for all. It is what `head_losses` is given
as a `Correction` in training.
"""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor

from torchspec.methods.walk import Walk


class CorrectedWalk(Walk):
    def __init__(self, states: Tensor, project: Callable[[Tensor], Tensor], readout: Callable[[Tensor], Tensor]):
        """states [n, S, H]; project: [r, H] -> logits [r, V_d]; readout: [r, E] -> what is added to them."""
        super().__init__(states, project)
        self.readout = readout

    @abstractmethod
    def factor(self, before: Tensor) -> Tensor:
        """[n, E] at `self.slot`, the token before it being `before` [n]. What it keeps of them, `keep` must narrow as well."""

    def logits(self, before: Tensor) -> Tensor:
        factor = self.factor(before)  # of this slot: the base's logits step on to the next
        return super().logits(before) + self.readout(factor)
