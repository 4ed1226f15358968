"""The losses of a chunk of logits on a CPU, a tile of rows at a time. Same functions as loss_kernels.py has for a GPU.

A tile is float32 and small: it stays in the cache from the first pass over it to the last. Fresh tensors for each pass would cost more
in page faults than in arithmetic.
"""

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 20  # logits in float32 at a time: 4 MiB
ARGMAX_WIDTH = 512


def cross_entropy_(logits: Tensor, bias: Tensor | None, labels: Tensor, losses: Tensor, predictions: Tensor) -> None:
    """logits [r, V] become softmax(logits + bias) - label; losses and predictions [r] are filled in."""
    size = _rows_of_a_tile(logits)
    buffer = logits.new_empty(size, logits.shape[1], dtype=torch.float32)
    for low, *row in zip(*(x.split(size) for x in (logits, labels[:, None], losses, predictions)), strict=True):
        _cross_entropy_of_tile(low, buffer[: len(low)], bias, *row)


def _cross_entropy_of_tile(logits: Tensor, x: Tensor, bias: Tensor | None, label: Tensor, loss: Tensor, best: Tensor) -> None:
    """x [r, V] float32 is scratch."""
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


def divergence_(logits: Tensor, targets: Tensor, rows: Tensor, kind: str, losses: Tensor, predictions: Tensor) -> None:
    """logits [r, V] of the draft become the derivative of the divergence from softmax(targets[rows]) by them, targets [u, V]."""
    size = _rows_of_a_tile(logits)
    buffers = [logits.new_empty(size, logits.shape[1], dtype=torch.float32) for _ in range(2)]
    for low, row, loss, best in zip(*(x.split(size) for x in (logits, rows, losses, predictions)), strict=True):
        log_p, log_q = (x[: len(low)] for x in buffers)
        log_p.copy_(targets[row])
        log_q.copy_(low)
        best.copy_(row_argmax(log_q))
        for x in (log_p, log_q):
            torch.log_softmax(x, dim=-1, out=x)
        divergence, slope = DIVERGENCES[kind](log_p, log_q)
        loss.copy_(divergence)
        low.copy_(slope)


def _rows_of_a_tile(logits: Tensor) -> int:
    return min(len(logits), max(1, TILE_ELEMENTS // logits.shape[1])) or 1


def row_argmax(x: Tensor) -> Tensor:
    """argmax of each row of [r, V], the first of equals: maxima of strips, then the place inside the strip that holds the first.

    On a CPU a maximum is vectorised and its place is not: ten times as fast as argmax at V = 49,152.
    """
    if x.shape[1] < 2 * ARGMAX_WIDTH:
        return x.argmax(dim=-1)
    strips = x.unfold(1, ARGMAX_WIDTH, ARGMAX_WIDTH)  # [r, V // width, width], a view; the last strip overlaps its neighbour
    last = x.shape[1] - ARGMAX_WIDTH
    strip = torch.cat((strips.amax(-1), x[:, last:].amax(-1, keepdim=True)), dim=1).argmax(-1, keepdim=True)
    start = (strip * ARGMAX_WIDTH).clamp(max=last)
    within = x.gather(1, start + torch.arange(ARGMAX_WIDTH)).argmax(-1)
    return start[:, 0] + within


def _kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Sum p log(p/q) of each row, and its derivative by the logits of q."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), log_q.exp() - p


def _tv(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation 1/2 sum |p - q| = 1 - a, where a = sum min(p, q) is the probability of acceptance."""
    q = log_q.exp()
    rising = q * (log_q < log_p)  # where more q raises the overlap a
    return 1 - torch.minimum(log_p.exp(), q).sum(-1), q * rising.sum(-1, keepdim=True) - rising


def _lk(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """l KL + (1 - l) (1 - a), where l = exp(-3 a) counts as constant."""
    (kl, kl_slope), (tv, tv_slope) = _kl(log_p, log_q), _tv(log_p, log_q)
    share = torch.exp(-3 * (1 - tv))
    return share * kl + (1 - share) * tv, share[:, None] * kl_slope + (1 - share)[:, None] * tv_slope


DIVERGENCES = {"kl": _kl, "tv": _tv, "lk": _lk}
