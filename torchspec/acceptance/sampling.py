"""Choosing tokens, greedily or at a temperature, and the verification of drafts that leaves the law of the target's text as it is.

At a temperature: speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). A draft token x
drawn from q is accepted with probability min(1, p(x) / q(x)); the first rejected one is replaced by a draw from the positive
part of p - q. Exact as far as float32 probabilities are. Nothing is cut from p (no top-k, no top-p).
"""

import torch
from torch import Tensor


class Sampler:
    """Temperature 0 is greedy. Draft and target draw from one generator, so that the seed decides the whole answer."""

    def __init__(self, temperature: float, seed: int, device: torch.device | str = "cpu"):
        """device: where the logits are."""
        self.temperature = temperature
        self.generator = torch.Generator(device).manual_seed(seed)

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """logits [r, V] -> tokens [r], and the probabilities [r, V] that they were drawn from; none where greedy."""
        if self.temperature == 0:
            return largest(logits), None
        p = probabilities(logits, self.temperature)
        return self._draw(p), p

    def verify(self, drafts: Tensor, q: Tensor | None, logits: Tensor) -> tuple[int, int]:
        """drafts [k], the probabilities q [k, V] that they were drawn from (none where greedy), the target's logits [k+1, V] of the
        tokens in the drafts' places and of the one after -> accepted drafts, and the target's own token behind them.
        """
        count = len(drafts)
        if self.temperature == 0:
            choices = largest(logits)
            accepted = int((drafts == choices[:count]).cumprod(0).sum())
            return accepted, int(choices[accepted])
        p, place = probabilities(logits, self.temperature), drafts[:, None]
        ratio = p[:count].gather(1, place) / q.gather(1, place)  # q > 0 where a token was drawn
        uniform = torch.rand(count, generator=self.generator, device=p.device)
        accepted = int((uniform < ratio[:, 0]).cumprod(0).sum())
        law = p[accepted] if accepted == count else residual(p[accepted], q[accepted])
        return accepted, int(self._draw(law))

    def _draw(self, weights: Tensor) -> Tensor:
        """[..., V], not necessarily normalised -> tokens [...]."""
        return torch.multinomial(weights, 1, generator=self.generator)[..., 0]


GREEDY = Sampler(0.0, seed=0)


def largest(logits: Tensor) -> Tensor:
    """[r, V] -> [r], the first among equals. On a CPU `max` reads a row of bfloat16 four times as fast as `argmax`."""
    return logits.max(-1).indices


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """[r, V] -> float32 [r, V]."""
    return (logits.float() / temperature).softmax(-1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """The target's law where a draft drawn from q was rejected, not normalised: [V]."""
    rest = (p - q).clamp(min=0)
    return rest if rest.any() else p  # p and q differ by rounding alone: so does p from the law


def log_probability(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """logits [r, V], tokens [r] -> float32 [r]. A logarithm, since a probability may underflow."""
    return (logits.float() / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
