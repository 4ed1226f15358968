"""The tokens that a draft can propose: all of the target's, or some with rows of a head that is saved and served with the draft."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from torchspec.acceptance.sampling import Sampler, largest
from torchspec.data.dataset import PromptDataset
from torchspec.errors import ContractError
from torchspec.nn.packed import product
from torchspec.target.frozen import FrozenTarget


def frequent_tokens(counts: Tensor, size: int) -> Tensor:
    """counts [V] of supervised tokens -> the `size` most frequent ids, ascending; lower ids first among equals."""
    return counts.argsort(descending=True, stable=True)[:size].sort().values


@dataclass(frozen=True)
class DraftVocabulary:
    head: Tensor  # [V_d, H] frozen rows
    ids: Tensor  # [V_d] target id of each row, ascending

    @cached_property
    def project(self) -> Callable[[Tensor], Tensor]:
        """[r, H] -> logits [r, V_d]."""
        return product(self.head)

    def choose(self, logits: Tensor, sampler: Sampler, size: int) -> tuple[Tensor, Tensor | None]:
        """[r, V_d] -> target ids [r], and the probabilities [r, V] that they were drawn from; none where greedy. size: V."""
        tokens, q = sampler.choose(logits)
        if q is not None and len(self.ids) < size:
            q = q.new_zeros(len(q), size).index_copy_(1, self.ids, q)
        return self.ids[tokens], q

    def largest(self, logits: Tensor) -> Tensor:
        """[r, V_d] -> target ids [r]."""
        return self.ids[largest(logits)]

    def holds(self, tokens: Tensor) -> Tensor:
        """Target ids [r] -> bool [r]: the draft can propose it."""
        return self.ids[self.row(tokens)] == tokens

    def row(self, tokens: Tensor) -> Tensor:
        """The rows of target ids [r], and any row for those that are not among the draft's."""
        return torch.searchsorted(self.ids, tokens.contiguous()).clamp(max=len(self.ids) - 1)


def whole_vocabulary(target: FrozenTarget) -> DraftVocabulary:
    return DraftVocabulary(target.head, torch.arange(len(target.head), device=target.head.device))


def frequent_vocabulary(target: FrozenTarget, dataset: PromptDataset, size: int) -> tuple[DraftVocabulary, float]:
    """The most frequent tokens of the supervised text, and the share of it that they are."""
    counts = dataset.token_counts(len(target.head), supervised=True)
    ids = frequent_tokens(counts, size)
    coverage = float(counts[ids].sum() / counts.sum())
    ids = ids.to(target.head.device)
    return DraftVocabulary(target.head[ids], ids), coverage


class FrozenHead(nn.Module):
    """Saved and served with the draft, never trained."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("weight", torch.empty(rows, width, dtype=dtype))


class VocabularyHolder(nn.Module):
    """A draft that may hold a vocabulary, in the tensors that servers read: `lm_head.weight`, `d2t` and `t2d`."""

    def hold_vocabulary(self, rows: int, vocab_size: int, width: int, dtype: torch.dtype) -> None:
        self.lm_head = FrozenHead(rows, width, dtype)
        self.register_buffer("d2t", torch.empty(rows, dtype=torch.int64))
        self.register_buffer("t2d", torch.empty(vocab_size, dtype=torch.bool))

    @torch.no_grad()
    def keep(self, vocabulary: DraftVocabulary) -> None:
        """The draft may still be on the host where the vocabulary's head is on a GPU."""
        ids = vocabulary.ids.to(self.d2t.device)
        self.lm_head.weight.copy_(vocabulary.head)
        self.d2t.copy_(ids - torch.arange(len(ids), device=ids.device))
        self.t2d.zero_()[ids] = True

    def kept(self) -> DraftVocabulary:
        return DraftVocabulary(self.lm_head.weight, check_vocabulary(self.d2t, self.t2d))


def check_vocabulary(d2t: Tensor, t2d: Tensor) -> Tensor:
    """d2t [V_d] target id minus draft id, t2d [V] is the token among the draft's -> target ids [V_d], ascending."""
    ids = d2t + torch.arange(len(d2t), device=d2t.device)
    if not torch.equal(ids, t2d.nonzero().flatten()):
        raise ContractError(
            "the draft's two maps of its vocabulary disagree: d2t + arange must be the tokens that t2d marks, in ascending order; "
            "export the draft again"
        )
    return ids
