"""P-EAGLE at inference: one causal forward over the new committed rows and the mask rows; the cache keeps the committed ones."""

from functools import partial

import torch
from torch import Tensor

from torchspec.acceptance.sampling import Sampler
from torchspec.methods.peagle.model import PeagleDraft
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.chain_attention import Attend, causal
from torchspec.target.frozen import FrozenTarget


class PeagleDrafter:
    """Drafts for one sequence. `extend` takes newly committed tokens with their features, `propose` drafts after the last token.

    Row t of the draft joins the features of x_t with the embedding of x_{t+1}, so a row waits for the token after it. The last one
    proposes the next token, the mask rows behind it those after.
    """

    def __init__(self, model: PeagleDraft, target: FrozenTarget, vocabulary: DraftVocabulary, block_size: int, mask_token_id: int):
        self.model, self.target, self.vocabulary = model, target, vocabulary
        self.block_size, self.mask_token_id = block_size, mask_token_id
        self.reset()

    def reset(self) -> None:
        self.committed = 0  # rows in the cache
        self.pending: list[tuple[Tensor, Tensor]] = []  # tokens and features that the next proposal appends to the cache
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self.model.layers)

    def extend(self, ids: Tensor, context: Tensor) -> None:
        """ids [n], context [n, (K+1)*H]: newly committed tokens and the features of the captured layers, the last layer's included."""
        self.pending.append((ids.to(context.device), context))

    def propose(self, last_token: int, sampler: Sampler) -> tuple[Tensor, Tensor | None]:
        """The last committed token (its features do not exist yet) -> the next B-1 tokens [B-1], each from its own row's law, and these
        laws [B-1, V]; none where greedy.
        """
        ids, context = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        features = context[:, : -self.target.head.shape[1]]
        new, device = len(features), features.device
        after = torch.cat((ids[1:], torch.tensor([last_token, self.mask_token_id], device=device)))
        embedded = torch.nn.functional.embedding(after, self.target.embedding)
        positions = torch.arange(self.committed, self.committed + new + self.block_size - 2, device=device)
        asking = torch.arange(new - 1, len(positions), device=device)
        hidden = self.model(
            embedded[:-1], embedded[-1], features, (positions[:new], positions[new:]), asking, lambda layer: self._attention(layer, new)
        )
        self.committed, self.pending = self.committed + new, []
        return self.vocabulary.choose(self.vocabulary.project(hidden), sampler, len(self.target.embedding))

    def _attention(self, layer: int, new: int) -> Attend:
        return partial(self._attend, layer, new)

    def _attend(self, layer: int, new: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """new: how many of the rows are committed ones, which the mask rows follow."""
        if self.cache[layer] is not None:
            k, v = (torch.cat(pair) for pair in zip(self.cache[layer], (k, v), strict=True))
        kept = self.committed + new
        self.cache[layer] = k[:kept], v[:kept]
        return causal(q, k, v)
