"""A cache for sequences of different length in one forward, each at its own length.

      cached rows of   sequence 0   p p p p p a a a - - .       p prompt, a answer, - rejected, . room
                       sequence 1   p p a - - - . . . . .

New rows are written behind a sequence's own end, over what was rejected; an explicit mask lets each row see its own sequence up to
itself. Transformers is told nothing else: positions, mask and cache are arguments of every model of full attention.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from torchspec.capture.hf import HFCapture
from torchspec.capture.state import layer_kinds
from torchspec.errors import UserError


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer, [N, kv_heads, capacity, d]; where new ones go is set before each forward."""

    is_sliding = False

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], capacity: int):
        """layers: keys and values of each sequence, [1, kv_heads, its length, d]."""
        super().__init__()
        self.keys, self.values = (_stacked(parts, capacity) for parts in zip(*layers, strict=True))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """[N, kv_heads, n, d] -> everything cached up to the longest sequence's end."""
        rows, positions = self.place
        for kept, new in ((self.keys, key_states), (self.values, value_states)):
            kept[rows, :, positions] = new.transpose(1, 2)
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]

    def write_at(self, rows: Tensor, positions: Tensor, end: int) -> None:
        """rows [N, 1] and positions [N, n] of the next keys; end: of the longest sequence with them."""
        self.place, self.end = (rows, positions), end

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Everything is there from the start."""

    def get_seq_length(self) -> int:
        return self.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


def _stacked(parts: Sequence[Tensor], capacity: int) -> Tensor:
    """[1, kv_heads, its length, d] of each sequence -> [N, kv_heads, capacity, d]."""
    first = parts[0]
    rows = first.new_zeros(len(parts), first.shape[1], capacity, first.shape[3])
    for row, part in zip(rows, parts, strict=True):
        row[:, : part.shape[2]] = part[0]
    return rows


class Running:
    """The sequences that have not ended, and their rows in one cache."""

    def __init__(self, target: HFCapture, prompts: list[Tensor], room: int):
        """Every prompt's prefill is its own, so that it is the one of decoding alone. room: tokens that any sequence may grow by."""
        refuse_all_but_full_attention(target)
        self.target, caches = target, [target.new_cache() for _ in prompts]
        self.prefilled = [target.step(ids, cache, logits_to_keep=1) for ids, cache in zip(prompts, caches, strict=True)]
        self.lengths = [len(ids) for ids in prompts]
        capacity = max(self.lengths) + room
        self.cache = Cache(layers=[RaggedLayer(layers, capacity) for layers in zip(*map(_layers, caches), strict=True)])

    def step(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Verifies [N, n] tokens, which `advance` then keeps or not -> logits [N, n, V], context features [N, n, K*H_t]."""
        count, device = ids.shape[1], self.target.device
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(count, device=device)
        rows, end = torch.arange(len(ids), device=device)[:, None], max(self.lengths) + count
        for layer in self.cache.layers:
            layer.write_at(rows, positions, end)
        visible = torch.arange(end, device=device) <= positions[:, None, :, None]  # [N, 1, n, end]
        return self.target.step_together(ids, self.cache, positions, visible)

    def advance(self, tokens: list[int]) -> None:
        """How many of the last step's rows stay, for each sequence."""
        self.lengths = [length + count for length, count in zip(self.lengths, tokens, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """Lets the other sequences go."""
        self.lengths = [self.lengths[row] for row in rows]
        self.cache.batch_select_indices(torch.tensor(rows, device=self.target.device))


def _layers(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def refuse_all_but_full_attention(target: HFCapture) -> None:
    kinds = layer_kinds(target.model.config) - {DynamicLayer}
    if kinds:
        what = "recurrent or convolution states" if target.recurrent else "sliding windows"
        raise UserError(f"--batch-size above 1 needs full attention in every layer, this target has {what}; use --batch-size 1")
