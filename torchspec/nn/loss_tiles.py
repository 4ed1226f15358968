"""The losses of a chunk of logits on a CPU, a tile of rows at a time. Same functions as loss_kernels.py has for a GPU.

A tile is float32 and small: it stays in the cache from the first pass over it to the last. Fresh tensors for each pass would cost more
in page faults than in arithmetic.
"""

import torch
from torch import Tensor

TILE_ELEMENTS = 1 << 20  # logits in float32 at a time: 4 MiB
ARGMAX_WIDTH = 512
KINDS = ("ce", "kl", "tv", "lk")


def losses_(
    logits: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    targets: Tensor | None,
    rows: Tensor | None,
    mixture: dict[str, float],
    loss: Tensor,
    cross_entropy: Tensor | None,
    overlap: Tensor | None,
    predictions: Tensor,
) -> None:
    """logits [r, V] become the derivative by them of the mixture of losses of q = softmax(logits + bias), the rest [r] is filled in.

    The target's p is softmax(targets[rows] + bias), targets [u, V]. Without targets the mixture is of cross-entropy alone.
    """
    size = _rows_of_a_tile(logits)
    buffers = [logits.new_empty(size, logits.shape[1], dtype=torch.float32) for _ in range(1 if targets is None else 4)]
    for start in range(0, len(logits), size):
        low, label, row, *out = (
            None if x is None else x[start : start + size] for x in (logits, labels, rows, loss, cross_entropy, overlap)
        )
        x, *scratch = (buffer[: len(low)] for buffer in buffers)
        best = row_argmax(x.copy_(low))  # what the draft would propose: before the bias, which serves the normaliser
        predictions[start : start + size] = best
        if bias is not None:
            x += bias
        if targets is None:
            found, slope = _of_labels(x, label, best, mixture["ce"])
        else:
            y = scratch[0].copy_(targets[row])
            found, slope = _of_laws(x, y if bias is None else y.add_(bias), *scratch[1:], label, mixture)
        low.copy_(slope)
        for place, value in zip(out, found, strict=True):
            if place is not None:
                place.copy_(value)


Found = tuple[Tensor, Tensor | None, Tensor | None]  # [r] loss, cross-entropy, overlap


def _of_labels(x: Tensor, label: Tensor, best: Tensor, weight: float) -> tuple[Found, Tensor]:
    """One pass less than _of_laws: the softmax is the slope, and the cross-entropy is found beside it. x [r, V] is overwritten."""
    label, best = label[:, None], best[:, None]
    likely, label_logit = x.gather(1, best), x.gather(1, label)
    torch.softmax(x, dim=-1, out=x)
    normaliser = likely - x.gather(1, best).log_()  # from a token whose probability cannot underflow
    cross_entropy = (normaliser - label_logit)[:, 0]
    x.scatter_add_(1, label, torch.full_like(label_logit, -1.0))
    return (weight * cross_entropy, cross_entropy, None), x if weight == 1.0 else x.mul_(weight)


def _of_laws(x: Tensor, y: Tensor, p: Tensor, q: Tensor, label: Tensor | None, mixture: dict[str, float]) -> tuple[Found, Tensor]:
    """x, y [r, V] logits of the draft and of the target; all four are overwritten, q by the slope.

    The slopes of single losses by the logits of q, a = sum min(p, q):   ce  q - label     kl  q - p     tv  q sum_{q < p} q - q [q < p]
    and lk's are those of kl and tv, with weights that depend on the row.
    """
    for logits, chance in ((x, q), (y, p)):
        torch.exp(torch.log_softmax(logits, dim=-1, out=logits), out=chance)
    cross_entropy = None if label is None else -x.gather(1, label[:, None])[:, 0]
    ratio = y.sub_(x)  # log p / q
    overlap = torch.minimum(p, q, out=x).sum(-1)
    share = torch.exp(-3 * overlap)
    ce, kl, tv, lk = (mixture.get(kind, 0.0) for kind in KINDS)
    kl, tv = kl + lk * share, tv + lk * (1 - share)  # [r]
    loss, scale = tv * (1 - overlap), ce + kl
    if "ce" in mixture:
        loss += ce * cross_entropy
    if mixture.keys() & {"kl", "lk"}:
        loss += kl * torch.mul(p, ratio, out=x).sum(-1)
    slope = q
    if mixture.keys() & {"tv", "lk"}:
        rising = torch.mul(q, ratio > 0, out=x)  # where more q raises the overlap
        slope.mul_((scale + tv * rising.sum(-1))[:, None]).sub_(rising.mul_(tv[:, None]))
    else:
        slope.mul_(scale[:, None])
    if mixture.keys() & {"kl", "lk"}:
        slope.sub_(p.mul_(kl[:, None]))
    if "ce" in mixture:
        slope.scatter_add_(1, label[:, None], slope.new_full((len(slope), 1), -ce))
    return (loss, cross_entropy, overlap), slope


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
