"""Losses against the frozen head, without a logits tensor: peak memory is one chunk of rows, whatever their number."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from torchspec.nn import loss_tiles
from torchspec.nn.chosen import chosen_products
from torchspec.nn.logits import LogitLaw
from torchspec.nn.loss_tiles import KINDS
from torchspec.nn.send import send

CHUNK_ELEMENTS = 1 << 24  # logits of one product with the head: enough rows (341 of 49,152) for a CPU's full speed
CUDA_CHUNK_ROWS = 1024  # each product reads the whole head, 1.24 GB of 151,936 tokens: with fewer rows a GPU reads instead of computing


@dataclass(frozen=True)
class Teacher:
    """The target's law at the slots: p = softmax(law(states[rows] @ head.T))."""

    states: Tensor  # [T, H] after the target's final norm, no gradient
    rows: Tensor  # [r] int64 on the host: the state of each slot; several slots may ask for one
    law: LogitLaw  # of the target alone: servers apply none to a draft, whose last norm learns its own scale

    @torch.no_grad()
    def logits(self, head: Tensor, chosen: Tensor) -> Tensor:
        """The target's own of a few tokens of each slot, rows of the head [r, K] -> float32 [r, K]."""
        states = self.states[send(self.rows, self.states.device)]
        return self.law.apply_(chosen_products(states, head, chosen))


@dataclass(frozen=True)
class Correction:
    """What an intra-block head adds to the logits: factor @ readout.T, both in the dtype of the hidden states."""

    factor: Tensor  # [r, E] with gradient
    readout: Tensor  # [V, E] trained, one row for each of the head's


@dataclass(frozen=True)
class HeadLosses:
    """Of r slots. Only `loss` has a gradient; the others are there to weigh it, and to be reported."""

    loss: Tensor  # [r] float32, the mixture
    cross_entropy: Tensor | None  # [r] float32, of the labels, in nats; none without labels
    overlap: Tensor | None  # [r] float32, sum of min(p, q): the chance of acceptance; none without a teacher
    predictions: Tensor  # [r] int64, the row of the head with the largest logit, corrected but without bias
    best: Tensor | None = None  # [r, K] int64, the K largest of them in descending order, where more than one was asked for


def head_losses(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor | None,
    mixture: dict[str, float],
    *,
    teacher: Teacher | None = None,
    bias: Tensor | None = None,
    correction: Correction | None = None,
    best: int = 1,
) -> HeadLosses:
    """A weighted mixture of losses of q = softmax(hidden @ head.T + factor @ readout.T + bias), softmax and logarithm in float32.

        ce   -log q of the label
        kl   sum p log(p / q), in nats
        tv   1/2 sum |p - q| = 1 - a, where a = sum min(p, q) is the chance of acceptance. Where a paper has the whole L1 norm, the weight
             is twice as large: DSpark's 0.1 CE + 0.9 L1 is {"ce": 0.1, "tv": 1.8}
        lk   l kl + (1 - l) tv, where l = exp(-3 a) counts as constant

    hidden [r, H] (leave rows of weight zero out), head [V, H] and bias [V] without gradient, labels [r] int64, of no use without ce but for
    the report. With a pruned head both p and q run over its V rows. A bias says how many tokens a row stands for, hence it is p's as well.
    best: K, how many of the largest logits are named; which they are has no gradient.

    Without a correction the gradients of single losses are finished when this returns: a loss may be weighted by what the losses are. A
    readout's gradient needs those weights, so with a correction the backward pass computes the logits once more, a third product with the
    head beside two (and a second one of the teacher); memory is a chunk in both passes.
    """
    _check(mixture, labels, teacher)
    named = hidden.new_empty(len(hidden), best, dtype=torch.int64) if best > 1 else None
    work = _Work(head, labels, mixture, teacher, bias, named)
    if correction is None:
        return HeadLosses(*_Finished.apply(hidden, work), named)
    return HeadLosses(*_Recomputed.apply(hidden, correction.factor, correction.readout, work), named)


def _check(mixture: dict[str, float], labels: Tensor | None, teacher: Teacher | None) -> None:
    """What would be left out in silence."""
    if not mixture or not mixture.keys() <= set(KINDS):
        raise ValueError(f"the mixture has {list(mixture) or 'no losses'}; give weights of {', '.join(KINDS)}")
    if "ce" in mixture and labels is None:
        raise ValueError("ce is the loss of labels; give them")
    if mixture.keys() != {"ce"} and teacher is None:
        raise ValueError(f"{sorted(mixture.keys() - {'ce'})} compare with the target's law; give a teacher")


def loss_values(rows: int, width: int, vocabulary: int, laws: int, factor: int = 0) -> int:
    """Values that a loss over so many rows holds on a GPU at once: the rows and their gradients, and a chunk of logits for each law.

    factor: width E of a correction, whose readout has a gradient in float32 (counts double) and the part of one chunk.
    """
    return 2 * rows * (width + factor) + laws * min(rows, CUDA_CHUNK_ROWS) * vocabulary + 3 * vocabulary * factor


@dataclass(frozen=True)
class _Work:
    """All that a call is about and that has no gradient."""

    head: Tensor
    labels: Tensor | None
    mixture: dict[str, float]
    teacher: Teacher | None
    bias: Tensor | None
    best: Tensor | None  # [r, K], filled in

    def empty(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """For the fields of HeadLosses."""
        numbers = [hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(3)]
        cross_entropy, overlap = None if self.labels is None else numbers[1], None if self.teacher is None else numbers[2]
        return numbers[0], cross_entropy, overlap, hidden.new_empty(len(hidden), dtype=torch.int64)

    def slopes(
        self, found: tuple[Tensor | None, ...], hidden: Tensor, factor: Tensor | None = None, readout: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Chunk by chunk fills in what is found, and yields the derivatives of the loss by the logits, [r', V] until the next chunk.

        Memory is touched once: a chunk of logits in the model's dtype, overwritten by its own gradient.
        """
        chunk, arithmetic = rows_at_a_time(self.head), _arithmetic(self.head)
        size = min(chunk, len(hidden))
        logits, targets = (self.head.new_empty(n, len(self.head)) for n in (size, 0 if self.teacher is None else size))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = logits[: len(hidden[part])]
            target, row = self._target(part, targets)
            torch.mm(hidden[part], self.head.T, out=rows)
            if factor is not None:
                rows.addmm_(factor[part], readout.T)
            if self.best is not None:
                self.best[part] = rows.topk(self.best.shape[1]).indices
            labels, *out = (None if x is None else x[part] for x in (self.labels, *found))
            arithmetic.losses_(rows, self.bias, labels, target, row, self.mixture, *out)
            yield part, rows

    def _target(self, part: slice, buffer: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The target's logits for some slots, each once, and where each slot finds its own."""
        if self.teacher is None:
            return None, None
        states, (unique, inverse) = self.teacher.states, self.teacher.rows[part].unique(return_inverse=True)
        logits = torch.mm(states[send(unique, states.device)], self.head.T, out=buffer[: len(unique)])
        return self.teacher.law.apply_(logits), send(inverse, states.device)


class _Finished(torch.autograd.Function):
    """The head has no gradient, so d loss / d hidden can be finished in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, work):
        found, gradient = work.empty(hidden), torch.empty_like(hidden)
        for part, slope in work.slopes(found, hidden):
            torch.mm(slope, work.head, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*(x for x in found[1:] if x is not None))
        return found

    @staticmethod
    def backward(ctx, weights, *_):
        return _weighted(*ctx.saved_tensors, weights), None


class _Recomputed(torch.autograd.Function):
    """The gradient of a readout is a sum over rows: it waits for their weights."""

    @staticmethod
    def forward(ctx, hidden, factor, readout, work):
        found = work.empty(hidden)
        for _ in work.slopes(found, hidden, factor, readout):
            pass
        ctx.work = work
        ctx.save_for_backward(hidden, factor, readout)
        ctx.mark_non_differentiable(*(x for x in found[1:] if x is not None))
        return found

    @staticmethod
    def backward(ctx, weights, *_):
        (hidden, factor, readout), work = ctx.saved_tensors, ctx.work
        of_hidden, of_factor = torch.empty_like(hidden), torch.empty_like(factor)
        of_readout = torch.zeros_like(readout, dtype=torch.float32)
        for part, slope in work.slopes(work.empty(hidden), hidden, factor, readout):
            torch.mm(slope, work.head, out=of_hidden[part])
            torch.mm(slope, readout, out=of_factor[part])
            of_readout += slope.T @ _weighted(factor[part], weights[part])
        return _weighted(of_hidden, weights), _weighted(of_factor, weights), of_readout.to(readout.dtype), None


def _weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """rows [r, H], each times its weight [r] float32."""
    return (rows * weights[:, None]).to(rows.dtype)


def rows_at_a_time(head: Tensor) -> int:
    return CUDA_CHUNK_ROWS if head.is_cuda else max(1, CHUNK_ELEMENTS // len(head))


def _arithmetic(head: Tensor) -> ModuleType:
    """What turns a chunk of logits into losses, predictions and, in place, its own gradient."""
    if not head.is_cuda:
        return loss_tiles
    from torchspec.nn import loss_kernels  # Triton comes with PyTorch's builds for GPUs alone

    return loss_kernels
