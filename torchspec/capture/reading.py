"""How a target with recurrent states reads on from a cache, which Transformers computes otherwise for some families.

Measured once, with a dozen tokens, since it depends on the family, the release, and the kernels that are installed. In transformers 5.23
Jamba and Zamba start their recurrence anew when they are given several tokens: they read one by one here. Nemotron-H and Zamba2 keep
their time steps above a floor, but not when they are given one token: in float32 that shows, and Nemotron-H reads one by one as well.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from torchspec.capture.state import States, length, new_cache, put_back, states
from torchspec.errors import UserError

TOKENS, BLOCK = 12, 4  # of the measurement: more than a convolution reaches, read on by a block
ANOTHER = 0.25  # relative difference of logits that no rounding makes

Forward = Callable[[Tensor, Cache, int, Tensor | None], tuple[Tensor, Tensor]]


class RecurrentReading:
    """forward: ids [n], cache, logits to keep, positions [n] -> logits and context features of these tokens."""

    def __init__(self, model: PreTrainedModel, forward: Forward):
        self.model, self.forward, self.at_once = model, forward, True
        self._measure()

    def step(self, ids: Tensor, cache: Cache, logits_to_keep: int = 0) -> tuple[Tensor, Tensor]:
        if self.at_once or length(cache) == 0:
            return self._read(ids, cache, logits_to_keep)
        logits, context = (torch.cat(rows) for rows in zip(*(self._read(token, cache) for token in ids.split(1)), strict=True))
        return logits[-logits_to_keep:], context

    def _read(self, ids: Tensor, cache: Cache, logits_to_keep: int = 0) -> tuple[Tensor, Tensor]:
        """Positions are given, since some models (Bamba) begin at 0 whatever is cached."""
        return self.forward(ids, cache, logits_to_keep, length(cache) + torch.arange(len(ids)))

    @torch.inference_mode()
    def _measure(self) -> None:
        ids, name = torch.arange(TOKENS), type(self.model).__name__
        whole = self.model(input_ids=ids.to(self.model.device)[None], use_cache=False).logits[0]
        rounding = torch.finfo(whole.dtype).eps ** 0.5
        try:
            singly, truth = self._logits(ids.split(1))
        except ValueError as refused:  # by models with a cache of their own, as MiniMax
            raise UserError(f"{name} cannot be decoded in this process, use an engine. Transformers says: {refused}") from None
        if not apart(singly, whole) < ANOTHER:  # NaN as well
            raise UserError(f"{name} of this Transformers reads a text otherwise token by token than whole; decode it with an engine")
        block, remembered = self._logits(ids.split([TOKENS - BLOCK, BLOCK]))
        self.at_once = apart(block[-BLOCK:], singly[-BLOCK:]) < rounding and states_apart(remembered, truth) < rounding
        if not states_apart(self._after(ids, rejected=BLOCK - 1), self._after(ids, rejected=0)) < rounding:
            raise UserError(f"{name} of this Transformers does not forget rejected tokens; decode it with an engine")

    def _logits(self, pieces: tuple[Tensor, ...]) -> tuple[Tensor, States]:
        cache = new_cache(self.model.config)
        return torch.cat([self._read(piece, cache)[0] for piece in pieces]), states(cache)

    def _after(self, ids: Tensor, rejected: int) -> States:
        """The last block is read after that many wrong ones behind its first were read and taken back."""
        cache = new_cache(self.model.config)
        self._read(ids[:-BLOCK], cache)
        before, draft = states(cache), torch.cat((ids[-BLOCK:][:1], ids[:rejected]))
        self.step(draft, cache)
        if rejected:
            put_back(cache, before, len(draft))
            self.step(draft[:1], cache)
        self.step(ids[1 - BLOCK :], cache)
        return states(cache)


def apart(logits: Tensor, reference: Tensor) -> float:
    """[n, V]: the median token's difference, relative to what its logits vary by; single tokens may part, as at a tie of two experts."""
    logits, reference = logits.float(), reference.float()
    varied = (reference - reference.mean(-1, keepdim=True)).norm(dim=-1)
    return float(((logits - reference).norm(dim=-1) / varied.clamp_min(1e-6)).median())  # a padding id's embedding may be zero


def states_apart(states: States, reference: States) -> float:
    """Of the first layer that has any: its input is the embedding, and rounding, which adds up over layers, cannot hide a difference."""
    first = next((i for i, kept in enumerate(reference) if _tensors(kept)), None)
    if first is None:  # RecurrentGemma's are in its modules, out of reach
        return float("inf")
    pairs = zip(_tensors(states[first]), _tensors(reference[first]), strict=True)
    return max(float((ours - theirs).norm() / theirs.norm().clamp_min(1e-6)) for ours, theirs in pairs)


def _tensors(kept: dict) -> list[Tensor]:
    """Transformers keeps several states of a layer in a dict."""
    values = [value for entry in kept.values() for value in (entry.values() if isinstance(entry, dict) else [entry])]
    return [value.float() for value in values if isinstance(value, Tensor)]
