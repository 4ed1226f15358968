"""The tokens that a draft can propose: all of the target's, or the most frequent ones of the data with their rows of the head."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from torchspec.evaluate.sampling import Sampler, head_log_probability
from torchspec.nn.packed import product


def frequent_tokens(counts: Tensor, size: int) -> Tensor:
    """counts [V] of supervised tokens -> the `size` most frequent ids, ascending; lower ids first among equals."""
    return counts.argsort(descending=True, stable=True)[:size].sort().values


@dataclass(frozen=True)
class DraftVocabulary:
    head: Tensor  # [V_d, H] frozen rows of the target's head
    ids: Tensor  # [V_d] target id of each row

    @cached_property
    def project(self) -> Callable[[Tensor], Tensor]:
        """[r, H] -> logits [r, V_d]."""
        return product(self.head)

    def choose(self, hidden: Tensor, sampler: Sampler, size: int) -> tuple[Tensor, Tensor | None]:
        """[r, H] -> target ids [r], and the probabilities [r, V] that they were drawn from; none where greedy. size: V."""
        tokens, q = sampler.choose(self.project(hidden))
        if q is not None:
            q = q.new_zeros(len(q), size).index_copy_(1, self.ids, q)
        return self.ids[tokens], q

    def log_probability(self, hidden: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        """[r, H], target ids [r] -> log q [r]; -inf for a token that the draft does not have."""
        row = torch.searchsorted(self.ids, tokens).clamp(max=len(self.ids) - 1)  # ids ascend
        log_q = head_log_probability(hidden, self.head, row, temperature)
        return log_q.where(self.ids[row] == tokens, -torch.inf)
