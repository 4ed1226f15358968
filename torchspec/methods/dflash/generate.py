"""DFlash at inference: the draft with a cache that holds context keys and values only, block rows are thrown away."""

from functools import partial

import torch
from torch import Tensor

from torchspec.acceptance.sampling import Sampler
from torchspec.methods.dflash.format import sights
from torchspec.methods.dflash.model import Attend, DFlashDraft
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.attention import WHOLE
from torchspec.target.frozen import FrozenTarget


class DFlashDrafter:
    """Drafts for one sequence. `extend` takes the features of newly committed tokens, `propose` drafts after the last token."""

    def __init__(self, model: DFlashDraft, target: FrozenTarget, vocabulary: DraftVocabulary, block_size: int, mask_token_id: int):
        self.model, self.target, self.vocabulary = model, target, vocabulary
        self.block_size, self.mask_token_id, self.sights = block_size, mask_token_id, sights(model.config)
        self.reset()

    def reset(self) -> None:
        self.committed = 0  # tokens whose target features the draft has seen
        self.pending: list[Tensor] = []  # features that the next proposal appends to the cache
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self.model.layers)

    def extend(self, ids: Tensor, context: Tensor) -> None:
        """context [n, K*H_t]: features of the next n committed tokens, which enter through them alone."""
        self.pending.append(context)

    def propose(self, last_token: int, sampler: Sampler) -> tuple[Tensor, Tensor | None]:
        """The last committed token (its features do not exist yet) -> the next B-1 tokens [B-1], each from its own slot's law, and
        these laws [B-1, V]; none where greedy.
        """
        features = torch.cat(self.pending)
        device, end = features.device, self.committed + len(features)
        rows = torch.full((self.block_size,), self.mask_token_id, device=device)
        rows[0] = last_token
        positions = torch.arange(self.committed, end + self.block_size, device=device)
        embedded = torch.nn.functional.embedding(rows, self.target.embedding)
        hidden = self.model(embedded, features, (positions[: len(features)], positions[len(features) :]), self._attention)
        self.committed, self.pending = end, []
        return self.vocabulary.choose(hidden[1:], sampler, len(self.target.embedding))

    def _attention(self, layer: int) -> Attend:
        return partial(self._attend, layer)

    def _attend(self, layer: int, q: Tensor, k_new: Tensor, v_new: Tensor, k_block: Tensor, v_block: Tensor) -> Tensor:
        """Every slot sees the whole context and its own block: no mask at all, unless the layer's sight is limited, and then no slot sees
        a row before those that are kept. q [B, heads, d], k/v [rows, kv_heads, d].
        """
        old, sight = self.cache[layer], self.sights[layer]
        k, v = (k_new, v_new) if old is None else (torch.cat((old[0], k_new)), torch.cat((old[1], v_new)))
        kept = sight.seen_context(len(k))
        k, v = self.cache[layer] = (k[len(k) - kept :], v[len(v) - kept :])
        place = torch.arange(kept + len(q), device=q.device)  # of the kept rows and the block's, which follow them
        seen = None if sight == WHOLE else sight.sees(place[kept:, None] - place)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, torch.cat((k, k_block)), torch.cat((v, v_block))))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return out[0].transpose(0, 1)
