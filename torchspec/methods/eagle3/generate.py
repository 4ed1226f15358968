"""EAGLE-3 at inference: the cache keeps the keys and values of committed rows, made from the target's own features; a chain's go."""

import torch
from torch import Tensor

from torchspec.acceptance.sampling import Sampler
from torchspec.methods.eagle3.model import Eagle3Draft, KeyValue
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.target.frozen import FrozenTarget


class Choices:
    """Lets chains go on with the draft's own choice, and remembers it."""

    def __init__(self, vocabulary: DraftVocabulary, embedding: Tensor, sampler: Sampler):
        self.vocabulary, self.embedding, self.sampler = vocabulary, embedding, sampler
        self.tokens: list[Tensor] = []  # [R] of each step
        self.q: list[Tensor | None] = []  # [R, V] of each step: what its tokens were drawn from; none where greedy

    def choose(self, hidden: Tensor) -> None:
        tokens, q = self.vocabulary.choose(self.vocabulary.project(hidden), self.sampler, len(self.embedding))
        self.tokens.append(tokens)
        self.q.append(q)

    def follow(self, step: int, hidden: Tensor) -> Tensor:
        self.choose(hidden)
        return torch.nn.functional.embedding(self.tokens[-1], self.embedding)


class Eagle3Drafter:
    """Drafts for one sequence. `extend` takes newly committed tokens with their features, `propose` drafts after the last token.

    Row t of the draft joins the features of x_t with the embedding of x_{t+1}, so a row waits for the token after it.
    """

    def __init__(self, model: Eagle3Draft, target: FrozenTarget, vocabulary: DraftVocabulary, block_size: int):
        self.model, self.target, self.vocabulary, self.block_size = model, target, vocabulary, block_size
        self.reset()

    def reset(self) -> None:
        self.committed = 0  # rows in the cache
        self.pending: list[tuple[Tensor, Tensor]] = []  # tokens and features that the next proposal appends to the cache
        self.cache: KeyValue | None = None

    def extend(self, ids: Tensor, context: Tensor) -> None:
        """ids [n], context [n, (K+1)*H]: newly committed tokens and the features of the captured layers, the last layer's included."""
        self.pending.append((ids.to(context.device), context))

    def propose(self, last_token: int, sampler: Sampler) -> tuple[Tensor, Tensor | None]:
        """The last committed token (its features do not exist yet) -> the next B-1 tokens [B-1], each drawn after the one before it,
        and what they were drawn from [B-1, V]; none where greedy.
        """
        ids, context = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        features = context[:, : -self.target.head.shape[1]]
        end, device = self.committed + len(features), features.device
        after = torch.cat((ids[1:], torch.tensor([last_token], device=device)))
        positions, starts = torch.arange(self.committed, end, device=device), torch.tensor([len(after) - 1], device=device)
        embedded = torch.nn.functional.embedding(after, self.target.embedding)
        choices = Choices(self.vocabulary, self.target.embedding, sampler)
        hidden = self.model(embedded, features, positions, starts, self.block_size - 1, choices.follow, self._attend)
        choices.choose(hidden[-1])
        self.committed, self.pending = end, []
        return torch.cat(choices.tokens), None if choices.q[0] is None else torch.cat(choices.q)

    def _attend(self, q: Tensor, past: tuple[KeyValue, ...]) -> Tensor:
        """The chain sees every committed row and its own steps: no mask at all. q [1, heads, d], k/v [rows, kv_heads, d]."""
        if len(past) == 1:  # the first step brings the new committed rows
            self.cache = past[0] if self.cache is None else tuple(torch.cat(pair) for pair in zip(self.cache, past[0], strict=True))
        k, v = (torch.cat(parts) for parts in zip(self.cache, *past[1:], strict=True))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)
