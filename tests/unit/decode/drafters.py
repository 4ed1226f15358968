"""Drafters with a known acceptance, for decoding: they follow the Drafter protocol and know the true continuation."""

import torch
from torch import Tensor

from tests.unit.tiny import VOCABULARY, B
from torchspec.acceptance.sampling import GREEDY, Sampler


class Scripted:
    """Proposes the true answer; `wrong(step, k)` says which draft tokens (k = 1..B-1) are replaced by another token."""

    def __init__(self, prompt: Tensor, answer: list[int], wrong=lambda step, k: False, block_size: int = B):
        self.prompt, self.answer, self.wrong, self.block_size = prompt, answer, wrong, block_size

    def reset(self) -> None:
        self.ids: list[Tensor] = []
        self.rows: list[Tensor] = []
        self.steps = 0

    def extend(self, ids: Tensor, context: Tensor) -> None:
        self.ids.append(ids)
        self.rows.append(context)

    def propose(self, last_token: int, sampler: Sampler) -> tuple[Tensor, None]:
        """Answer token i is the last one when features of the prompt and of i answer tokens are there."""
        at = sum(map(len, self.rows)) - len(self.prompt)
        assert self.answer[at] == last_token, "the loop hands over another number of rows than it committed tokens"
        tokens = (self.answer[at + 1 :] + [0] * self.block_size)[: self.block_size - 1]
        proposal = [(t + 1) % VOCABULARY if self.wrong(self.steps, k) else t for k, t in enumerate(tokens, start=1)]
        self.steps += 1
        return torch.tensor(proposal), None


class FirstChoice:
    """Proposes `inner`'s first choices whatever the sampler, as servers do: a law with all its mass on one token."""

    def __init__(self, inner):
        self.inner, self.block_size = inner, inner.block_size
        self.reset, self.extend = inner.reset, inner.extend

    def propose(self, last_token: int, _sampler: Sampler) -> tuple[Tensor, Tensor]:
        tokens, _ = self.inner.propose(last_token, GREEDY)
        return tokens, torch.nn.functional.one_hot(tokens, VOCABULARY).float()
