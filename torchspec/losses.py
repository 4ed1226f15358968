"""Losses against the frozen head, without a logits tensor: peak memory is one chunk of rows, whatever their number."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # logits of one product with the head: enough rows (341 of 49,152) for a CPU's full speed
CUDA_CHUNK_ELEMENTS = 1 << 27  # each product reads the whole head: 883 rows of 151,936 keep a GPU computing instead of reading
TILE_ELEMENTS = 1 << 20  # of these, in float32 at a time: 4 MiB, which stay in a CPU's cache from the first pass over them to the last
ARGMAX_WIDTH = 512


def _rows_at_a_time(head: Tensor) -> tuple[int, int]:
    """Rows of a chunk, and of a float32 tile of it; a GPU has no use for tiles."""
    chunk = max(1, (CUDA_CHUNK_ELEMENTS if head.is_cuda else CHUNK_ELEMENTS) // len(head))
    return chunk, chunk if head.is_cuda else min(chunk, max(1, TILE_ELEMENTS // len(head)))


def row_argmax(x: Tensor) -> Tensor:
    """argmax of each row of [r, V], the first of equals: maxima of strips, then the place inside the strip that holds the first.

    On a CPU a maximum is vectorised and its place is not: ten times as fast as argmax at V = 49,152.
    """
    if x.is_cuda or x.shape[1] < 2 * ARGMAX_WIDTH:
        return x.argmax(dim=-1)
    strips = x.unfold(1, ARGMAX_WIDTH, ARGMAX_WIDTH)  # [r, V // width, width], a view; the last strip overlaps its neighbour
    last = x.shape[1] - ARGMAX_WIDTH
    strip = torch.cat((strips.amax(-1), x[:, last:].amax(-1, keepdim=True)), dim=1).argmax(-1, keepdim=True)
    start = (strip * ARGMAX_WIDTH).clamp(max=last)
    within = x.gather(1, start + torch.arange(ARGMAX_WIDTH, device=x.device)).argmax(-1)
    return start[:, 0] + within


class _FrozenHeadCrossEntropy(torch.autograd.Function):
    """The head has no gradient, so d loss / d hidden can be finished in the forward pass, chunk by chunk.

    Memory is touched once: a chunk of logits in the model's dtype, overwritten by its own gradient, and a float32 tile of it.
    Fresh tensors for each pass would cost a CPU more in page faults than in arithmetic.
    """

    @staticmethod
    def forward(ctx, hidden, head, bias, labels):
        losses, predictions = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(labels)
        gradient = torch.empty_like(hidden)
        chunk, tile = _rows_at_a_time(head)
        logits, buffer = head.new_empty(min(chunk, len(hidden)), len(head)), head.new_empty(tile, len(head), dtype=torch.float32)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = logits[: len(hidden[part])]
            torch.mm(hidden[part], head.T, out=rows)  # [r, V]
            tiles = (x[part].split(tile) for x in (losses, predictions, labels))
            for low, loss, prediction, label in zip(rows.split(tile), *tiles, strict=True):
                _cross_entropy_of_tile(low, buffer[: len(low)], bias, label[:, None], loss, prediction)
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


def _cross_entropy_of_tile(logits: Tensor, x: Tensor, bias: Tensor | None, label: Tensor, loss: Tensor, best: Tensor):
    """logits [r, V] become softmax - label; loss and best [r] are filled in; x [r, V] float32 is scratch."""
    x.copy_(logits)
    best.copy_(row_argmax(x))  # what the draft would propose: before the bias, which serves the normaliser
    if bias is not None:
        x += bias
    likely, label_logit = x.gather(1, best[:, None]), x.gather(1, label)
    torch.softmax(x, dim=-1, out=x)
    normaliser = likely - x.gather(1, best[:, None]).log_()  # from a token whose probability cannot underflow
    loss.copy_((normaliser - label_logit)[:, 0])
    x.scatter_add_(1, label, torch.full_like(label_logit, -1.0))
    logits.copy_(x)


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
    def forward(ctx, hidden, head, states, rows, kind):
        losses, predictions = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(rows)
        gradient = torch.empty_like(hidden)
        chunk, tile = _rows_at_a_time(head)
        logits, targets = (head.new_empty(min(chunk, len(hidden)), len(head)) for _ in range(2))
        buffers = [head.new_empty(tile, len(head), dtype=torch.float32) for _ in range(2)]
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            unique, inverse = rows[part].unique(return_inverse=True)  # several draft rows ask for the same target row
            low, target = logits[: len(hidden[part])], targets[: len(unique)]
            torch.mm(states[unique], head.T, out=target)
            torch.mm(hidden[part], head.T, out=low)  # [r, V]
            tiles = (x[part].split(tile) for x in (losses, predictions))
            for slot, row, loss, prediction in zip(low.split(tile), inverse.split(tile), *tiles, strict=True):
                log_p, log_q = (x[: len(slot)] for x in buffers)
                log_p.copy_(target[row])
                log_q.copy_(slot)
                prediction.copy_(row_argmax(log_q))
                for x in (log_p, log_q):
                    torch.log_softmax(x, dim=-1, out=x)
                divergence, slope = DIVERGENCES[kind](log_p, log_q)
                loss.copy_(divergence)
                slot.copy_(slope)
            torch.mm(low, head, out=gradient[part])
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(predictions)
        return losses, predictions

    @staticmethod
    def backward(ctx, weights, _predictions):
        return _weighted(*ctx.saved_tensors, weights), None, None, None, None


def _kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Sum p log(p/q) of each row, and its derivative by the logits of q."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp() - p


def _lk(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """l KL + (1 - l) (1 - a), where a = sum min(p, q) is the probability of acceptance and l = exp(-3 a) counts as constant."""
    kl, kl_slope = _kl(log_p, log_q)
    q = log_q.exp()
    overlap = torch.minimum(log_p.exp(), q).sum(-1)
    rising = q * (log_q < log_p)  # where more q raises the overlap
    overlap_slope = rising - q * rising.sum(-1, keepdim=True)
    share = torch.exp(-3 * overlap)
    return share * kl + (1 - share) * (1 - overlap), share[:, None] * kl_slope - (1 - share)[:, None] * overlap_slope


DIVERGENCES = {"kl": _kl, "lk": _lk}


def frozen_head_divergence(hidden: Tensor, head: Tensor, states: Tensor, rows: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The divergences of q = softmax(hidden @ head.T) from p = softmax(states[rows] @ head.T), in float32.

    hidden [r, H] (leave rows of weight zero out), head [V, H] and states [T, H] (the target's, after its final norm) without
    gradient, rows [r] int64, kind one of DIVERGENCES. With a pruned head both run over its V rows.
    Returns the divergences [r] in nats, float32, and the rows of the head predicted [r].
    """
    return _FrozenHeadDivergence.apply(hidden, head, states, rows, kind)


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
        seen, self.unseen = counts.nonzero().flatten(), (counts == 0).nonzero().flatten()
        if negatives is not None and negatives < len(self.unseen):
            self.seen, self.seen_head = seen, head[seen.to(head.device)]
            self.index = torch.zeros(len(head), dtype=torch.int64, device=head.device)
            self.index[self.seen] = torch.arange(len(seen), device=head.device)
        else:
            self.negatives = None

    def draw(self, generator: torch.Generator) -> HeadRows:
        if self.negatives is None:
            return self.all
        drawn = self.unseen[torch.randint(len(self.unseen), (self.negatives,), generator=generator)]  # with replacement: unbiased
        bias = torch.zeros(len(self.seen) + self.negatives, device=self.head.device)
        bias[len(self.seen) :] = math.log(len(self.unseen) / self.negatives)
        drawn_head = self.head[drawn.to(self.head.device)]
        return HeadRows(torch.cat((self.seen_head, drawn_head)), torch.cat((self.seen, drawn)).to(self.head.device), self.index, bias)
