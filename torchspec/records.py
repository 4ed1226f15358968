"""The three records that cross a border: Prompt -> Features -> Batch. Nothing else travels.

Shapes: L tokens of one document, T tokens of all documents of a packed batch, N documents, K captured layers,
H_t hidden size of the target.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchspec.errors import ContractError
from torchspec.nn.staging import bring


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
    scales: Tensor | None = None  # [L, K] float32 where the context travels as float8: a value is context x scale

    def to(self, device: torch.device) -> "Features":
        return replace(self, context=bring(self.context, device))

    def check_length(self) -> "Features":
        if len(self.context) != len(self.prompt.ids):
            raise ContractError(
                f"sample {self.prompt.index} captured by {self.producer}: {len(self.context)} feature rows for {len(self.prompt.ids)} "
                "tokens; a prefix cache or chunked prefill in the engine drops rows, switch both off"
            )
        return self

    def check(self, sizes: Tensor | None = None) -> "Features":
        """Where features are made or read from disk; what only travelled is checked for its length.

        sizes: `row_sizes` where they were taken beside the states, on the device; none takes them here.
        """
        self.check_length()
        who = f"sample {self.prompt.index} captured by {self.producer}"
        sizes = row_sizes(self.context, len(self.layer_ids)) if sizes is None else sizes
        if not torch.isfinite(sizes).all():
            raise ContractError(f"{who}: features hold NaN or infinity, so the target overflowed; capture in bfloat16 or float32")
        if (sizes == 0).any():
            row, k = (sizes == 0).nonzero()[0].tolist()
            raise ContractError(
                f"{who}: features of token {row} at layer {self.layer_ids[k]} are all zero, so the engine did not fill the row"
            )
        return self


def row_sizes(context: Tensor, num_layers: int) -> Tensor:
    """[L, K] float32: the largest magnitude of each token and layer. NaN and infinity show in it, and rows that nobody filled."""
    return context.unflatten(1, (num_layers, -1)).abs().amax(-1).float()


@dataclass(frozen=True)
class Batch:
    """Several documents packed end to end, without padding."""

    ids: Tensor  # [T] int64, on the host
    loss_mask: Tensor  # [T] bool, on the host
    context: Tensor  # [T, K*H_t], where the draft is trained
    lengths: tuple[int, ...]  # N document lengths; sum = T
    indices: tuple[int, ...]  # N dataset indices
    epoch: int

    def to(self, device: torch.device) -> "Batch":
        """With its features there; ids and masks stay on the host."""
        return replace(self, context=bring(self.context, device))

    def check(self) -> "Batch":
        total = sum(self.lengths)
        if not (len(self.ids) == len(self.loss_mask) == len(self.context) == total):
            raise ContractError(
                f"batch of samples {self.indices}: {len(self.ids)} ids, {len(self.loss_mask)} mask entries and "
                f"{len(self.context)} feature rows for documents of {total} tokens"
            )
        return self
