"""Drafting at inference: the backbone with a cache that holds context keys and values only, block rows are thrown away."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchspec.acceptance.sampling import Sampler
from torchspec.methods import walk
from torchspec.methods.block.blocks import Blocks, blocks_of
from torchspec.methods.block.format import sights
from torchspec.methods.block.model import Attend, BlockDraft
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.methods.walk import Walk
from torchspec.nn.attention import WHOLE
from torchspec.target.frozen import FrozenTarget


class BlockDrafter:
    """Drafts for one sequence. `extend` takes the features of newly committed tokens, `propose` drafts after the last token."""

    def __init__(
        self,
        model: BlockDraft,
        target: FrozenTarget,
        vocabulary: DraftVocabulary,
        proposing: slice,
        walk_of: Callable[[BlockDraft, Blocks, DraftVocabulary], Walk],
        stop: walk.Stop | None = None,
    ):
        """proposing: rows of a block; walk_of: the method's walk over some blocks; stop: where drafting ends before the last of them."""
        self.model, self.target, self.vocabulary, self.proposing = model, target, vocabulary, proposing
        self.walk_of, self.stop = walk_of, stop
        self.block_size = len(range(model.config.block_size)[proposing]) + 1
        self.rows, self.mask_token_id = model.config.block_size, model.config.dflash_config["mask_token_id"]
        self.sights = sights(model.config)
        self.reset()

    def reset(self) -> None:
        self.committed = 0  # tokens whose target features the draft has seen
        self.pending: list[Tensor] = []  # features that the next proposal appends to the cache
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self.model.layers)

    def extend(self, ids: Tensor, context: Tensor) -> None:
        """context [n, K*H_t or more]: features of the next n committed tokens, which enter through them alone."""
        self.pending.append(context[:, : self.model.fc.in_features])

    def propose(self, last_token: int, sampler: Sampler) -> tuple[Tensor, Tensor | None]:
        """The last committed token (its features do not exist yet) -> the next tokens [S], each from its own slot's law, and these laws
        [S, V]; none where greedy. S may be less than all slots, and 0, where drafting stops early.
        """
        features = torch.cat(self.pending)
        device, end = features.device, self.committed + len(features)
        rows = torch.full((self.rows,), self.mask_token_id, device=device)
        rows[0] = last_token
        positions = torch.arange(self.committed, end + self.rows, device=device)
        embedded = torch.nn.functional.embedding(rows, self.target.embedding)
        last = torch.arange(len(features) - 1, len(features), device=device)
        finish = partial(blocks_of, rows[:1], last, self.proposing)
        blocks = self.model(embedded, features, (positions[: len(features)], positions[len(features) :]), self._attention, finish)
        self.committed, self.pending = end, []
        steps = self.walk_of(self.model, blocks, self.vocabulary)
        tokens, q = walk.draft(steps, rows[:1], self.vocabulary, sampler, len(self.target.embedding), self.stop)
        return tokens[0], None if q is None else q[0]

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
