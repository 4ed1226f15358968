"""The three records that cross a border: Prompt -> Features -> Batch. Nothing else travels.

Shapes: L tokens of one document, T tokens of all documents of a packed batch, N documents, K captured layers,
H_t hidden size of the target.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchspec.errors import ContractError


@dataclass(frozen=True)
class Prompt:
    """One conversation as token ids, with the tokens that the draft must learn to predict."""

    index: int  # position in the prepared dataset; names the sample in every message
    ids: Tensor  # [L] int64
    loss_mask: Tensor  # [L] bool, true on the target's own tokens, end of turn included

    def check(self) -> "Prompt":
        if self.ids.dim() != 1 or self.ids.shape != self.loss_mask.shape:
            raise ContractError(
                f"sample {self.index}: ids {tuple(self.ids.shape)} and loss mask {tuple(self.loss_mask.shape)} differ in shape"
            )
        supervised = int(self.loss_mask.sum())
        if supervised == 0 or supervised == len(self.ids):
            raise ContractError(
                f"sample {self.index}: {supervised} of {len(self.ids)} tokens are supervised; the loss mask must cover the "
                "assistant turns and nothing else, so prepare the data again with the target's own chat template"
            )
        return self

    @property
    def question(self) -> Tensor:
        """[l] what the target is asked: everything before the first answer."""
        return self.ids[: self.spans()[0][0]]

    def spans(self) -> list[tuple[int, int]]:
        """Half-open [start, end) ranges of consecutive supervised tokens: the answers."""
        edges = torch.diff(self.loss_mask.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
        return list(zip((edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist(), strict=True))


@dataclass(frozen=True)
class Features:
    """What one target forward yields for one prompt."""

    prompt: Prompt
    context: Tensor  # [L, K*H_t] outputs of the captured layers, concatenated in ascending layer order
    layer_ids: tuple[int, ...]  # z-ids: index of the decoder layer whose output was taken
    producer: str  # backend and engine that captured them

    def check_length(self) -> "Features":
        if len(self.context) != len(self.prompt.ids):
            raise ContractError(
                f"sample {self.prompt.index} captured by {self.producer}: {len(self.context)} feature rows for {len(self.prompt.ids)} "
                "tokens; a prefix cache or chunked prefill in the engine drops rows, switch both off"
            )
        return self

    def check(self) -> "Features":
        """Where features are made or read from disk; what only travelled is checked for its length."""
        self.check_length()
        who = f"sample {self.prompt.index} captured by {self.producer}"
        row_norm = torch.linalg.vector_norm(self.context.unflatten(1, (len(self.layer_ids), -1)).float(), dim=-1)  # [L, K]
        if not torch.isfinite(row_norm).all():
            raise ContractError(f"{who}: features hold NaN or infinity, so the target overflowed; capture in bfloat16 or float32")
        if (row_norm == 0).any():
            row, k = (row_norm == 0).nonzero()[0].tolist()
            raise ContractError(
                f"{who}: features of token {row} at layer {self.layer_ids[k]} are all zero, so the engine did not fill the row"
            )
        return self


@dataclass(frozen=True)
class Batch:
    """Several documents packed end to end, without padding."""

    ids: Tensor  # [T] int64, on the host
    loss_mask: Tensor  # [T] bool, on the host
    context: Tensor  # [T, K*H_t], where the draft is trained
    lengths: tuple[int, ...]  # N document lengths; sum = T
    indices: tuple[int, ...]  # N dataset indices
    epoch: int

    def check(self) -> "Batch":
        total = sum(self.lengths)
        if not (len(self.ids) == len(self.loss_mask) == len(self.context) == total):
            raise ContractError(
                f"batch of samples {self.indices}: {len(self.ids)} ids, {len(self.loss_mask)} mask entries and "
                f"{len(self.context)} feature rows for documents of {total} tokens"
            )
        return self
