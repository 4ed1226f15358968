"""Losses against the frozen head, without a logits tensor: peak memory is one chunk of rows, whatever their number."""

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from torchspec.nn import loss_tiles
from torchspec.nn.logits import AS_THEY_COME, LogitLaw
from torchspec.nn.send import send

CHUNK_ELEMENTS = 1 << 24  # logits of one product with the head: enough rows (341 of 49,152) for a CPU's full speed
CUDA_CHUNK_ROWS = 1024  # each product reads the whole head, 1.24 GB of 151,936 tokens: with fewer rows a GPU reads instead of computing


def _rows_at_a_time(head: Tensor) -> int:
    return CUDA_CHUNK_ROWS if head.is_cuda else max(1, CHUNK_ELEMENTS // len(head))


def _arithmetic(head: Tensor) -> ModuleType:
    """What turns a chunk of logits into losses, predictions and, in place, its own gradient."""
    if not head.is_cuda:
        return loss_tiles
    from torchspec.nn import loss_kernels  # Triton comes with PyTorch's builds for GPUs alone

    return loss_kernels


def loss_values(rows: int, width: int, vocabulary: int, laws: int) -> int:
    """Values that a loss over so many rows holds on a GPU at once: the rows and their gradients, and a chunk of logits for each law."""
    return 2 * rows * width + laws * min(rows, CUDA_CHUNK_ROWS) * vocabulary


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """The head has no gradient, so d loss / d hidden can be finished in the forward pass, chunk by chunk.

    Memory is touched once: a chunk of logits in the model's dtype, overwritten by its own gradient.
    """

    @staticmethod
    def forward(ctx, hidden, head, bias, labels):
        losses, predictions = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(labels)
        gradient, chunk, arithmetic = torch.empty_like(hidden), _rows_at_a_time(head), _arithmetic(head)
        logits = head.new_empty(min(chunk, len(hidden)), len(head))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = logits[: len(hidden[part])]
            torch.mm(hidden[part], head.T, out=rows)  # [r, V]
            arithmetic.cross_entropy_(rows, bias, labels[part], losses[part], predictions[part])
            torch.mm(rows, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(predictions)
        return losses, predictions

    @staticmethod
    def backward(ctx, weights, _predictions):
        return _weighted(*ctx.saved_tensors, weights), None, None, None


def _weighted(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradients of single losses [r, H], each times its weight [r] float32."""
    return (gradient * weights[:, None]).to(gradient.dtype)


def frozen_head_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The cross-entropies of softmax(hidden @ head.T + bias), softmax and logarithm in float32.

    hidden [r, H] (leave rows of weight zero out), head [V, H] and bias [V] without gradient, labels [r] int64.
    Returns the losses [r] in nats, float32, and the predicted tokens [r]. Gradients of single losses are finished when this returns,
    so a loss may be weighted by what the losses are.
    """
    return _FrozenHeadCrossEntropy.apply(hidden, head, bias, labels)


class _FrozenHeadDivergence(torch.autograd.Function):
    """As above, with the target's whole distribution in place of a label."""

    @staticmethod
    def forward(ctx, hidden, head, states, rows, kind, law):
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        predictions = torch.empty_like(losses, dtype=torch.int64)
        gradient, chunk, arithmetic = torch.empty_like(hidden), _rows_at_a_time(head), _arithmetic(head)
        logits, targets = (head.new_empty(min(chunk, len(hidden)), len(head)) for _ in range(2))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            unique, inverse = rows[part].unique(return_inverse=True)  # several draft rows ask for the same target row
            low, target = logits[: len(hidden[part])], targets[: len(unique)]
            law.apply_(torch.mm(states[send(unique, states.device)], head.T, out=target))
            torch.mm(hidden[part], head.T, out=low)  # [r, V]
            arithmetic.divergence_(low, target, send(inverse, states.device), kind, losses[part], predictions[part])
            torch.mm(low, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(predictions)
        return losses, predictions

    @staticmethod
    def backward(ctx, weights, _predictions):
        return _weighted(*ctx.saved_tensors, weights), None, None, None, None, None


def frozen_head_divergence(
    hidden: Tensor, head: Tensor, states: Tensor, rows: Tensor, kind: str, law: LogitLaw = AS_THEY_COME
) -> tuple[Tensor, Tensor]:
    """The divergences of q = softmax(hidden @ head.T) from p = softmax(law(states[rows] @ head.T)), in float32.

    hidden [r, H] (leave rows of weight zero out), head [V, H] and states [T, H] (the target's, after its final norm) without
    gradient, rows [r] int64 on the host, kind one of loss_tiles.DIVERGENCES. With a pruned head both run over its V rows. law: of the
    target alone, since servers apply none to a draft, whose last norm learns its own scale.
    Returns the divergences [r] in nats, float32, and the rows of the head predicted [r].
    """
    return _FrozenHeadDivergence.apply(hidden, head, states, rows, kind, law)


@dataclass(frozen=True)
class HeadRows:
    """The rows of the head that one loss is computed against."""

    head: Tensor  # [V', H]
    ids: Tensor  # [V'] token of each row
    index: Tensor  # [V] row of each token; of use for labels only, which are all among the rows
    bias: Tensor | None  # [V'] added to the logits


class LossVocabulary:
    """The tokens that the softmax of the loss runs over: all of them, or those of the training data and a fresh draw of the others.

    The head is most of the work of a small draft with a large vocabulary. With `negatives` = n, the V - S tokens that never
    occur in the data are represented by n of them, each standing for (V - S) / n: log of that is added to its logit, so the
    normaliser is unbiased and a token without examples still learns not to win.
    """

    def __init__(self, head: Tensor, counts: Tensor, negatives: int | None):
        self.head, self.negatives = head, negatives
        self.all = HeadRows(head, torch.arange(len(head), device=head.device), torch.arange(len(head), device=head.device), None)
        seen, self.unseen = counts.nonzero().flatten().to(head.device), (counts == 0).nonzero().flatten()  # unseen: drawn from on the host
        if negatives is not None and negatives < len(self.unseen):
            self.seen, self.seen_head = seen, head[seen]
            self.index = torch.zeros(len(head), dtype=torch.int64, device=head.device)
            self.index[self.seen] = torch.arange(len(seen), device=head.device)
        else:
            self.negatives = None

    def draw(self, generator: torch.Generator) -> HeadRows:
        if self.negatives is None:
            return self.all
        drawn = self.unseen[torch.randint(len(self.unseen), (self.negatives,), generator=generator)]  # with replacement: unbiased
        drawn = send(drawn, self.head.device)
        bias = torch.zeros(len(self.seen) + self.negatives, device=self.head.device)
        bias[len(self.seen) :] = math.log(len(self.unseen) / self.negatives)
        return HeadRows(torch.cat((self.seen_head, self.head[drawn])), torch.cat((self.seen, drawn)), self.index, bias)
