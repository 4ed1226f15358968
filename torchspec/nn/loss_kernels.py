"""The losses of a chunk of logits on a GPU: one program per row, two or three passes over memory where PyTorch's operators make twelve.

The softmax is computed online: largest value and sum of exponentials in one pass, rescaled whenever a block holds a larger value.
float32 inside; only what is read from and written to the logits is in the model's dtype.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 8192, 8  # tokens of one row at a time, 32 for each thread
KL, TV, LK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
KINDS = {"kl": 0, "tv": 1, "lk": 2}


def cross_entropy_(logits: Tensor, bias: Tensor | None, labels: Tensor, losses: Tensor, predictions: Tensor) -> None:
    """logits [r, V] become softmax(logits + bias) - label; losses and predictions [r] are filled in."""
    if len(logits):
        _cross_entropy[(len(logits),)](
            logits, logits if bias is None else bias, labels, losses, predictions, logits.shape[1], bias is not None, BLOCK, num_warps=WARPS
        )


def divergence_(logits: Tensor, targets: Tensor, rows: Tensor, kind: str, losses: Tensor, predictions: Tensor) -> None:
    """logits [r, V] of the draft become the derivative of the divergence from softmax(targets[rows]) by them, targets [u, V]."""
    if len(logits):
        _divergence[(len(logits),)](
            logits, targets, rows, losses, predictions, logits.shape[1], KINDS[kind], BLOCK, num_warps=WARPS
        )  # fmt: skip


@triton.jit
def _cross_entropy(logits, bias, labels, losses, predictions, size, BIASED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * size
    label = tl.load(labels + row)
    label_logit = tl.load(logits + label).to(tl.float32)  # before any warp overwrites it: the reductions below are barriers
    if BIASED:
        label_logit += tl.load(bias + label)
    best, largest, peak, total = tl.zeros((), tl.int64), float("-inf"), float("-inf"), 0.0
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(logits + place, mask=place < size, other=float("-inf")).to(tl.float32)
        best, largest = _better(x, start, best, largest)  # what the draft would propose: before the bias, which serves the normaliser
        if BIASED:
            x += tl.load(bias + place, mask=place < size, other=0.0)
        peak, total = _more(x, peak, total)
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(logits + place, mask=place < size, other=float("-inf")).to(tl.float32)
        if BIASED:
            x += tl.load(bias + place, mask=place < size, other=0.0)
        slope = tl.exp(x - peak) / total - tl.where(place == label, 1.0, 0.0)
        tl.store(logits + place, slope.to(logits.dtype.element_ty), mask=place < size)
    tl.store(losses + row, peak + tl.log(total) - label_logit)
    tl.store(predictions + row, best)


@triton.jit
def _divergence(logits, targets, rows, losses, predictions, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * size
    targets += tl.load(rows + row) * size
    best, largest, peak_q, total_q, peak_p, total_p = tl.zeros((), tl.int64), float("-inf"), float("-inf"), 0.0, float("-inf"), 0.0
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        x = tl.load(logits + place, mask=place < size, other=float("-inf")).to(tl.float32)
        best, largest = _better(x, start, best, largest)
        peak_q, total_q = _more(x, peak_q, total_q)
        peak_p, total_p = _more(tl.load(targets + place, mask=place < size, other=float("-inf")).to(tl.float32), peak_p, total_p)
    norm_q, norm_p, kl, overlap, rising = peak_q + tl.log(total_q), peak_p + tl.log(total_p), 0.0, 0.0, 0.0
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        log_q = tl.load(logits + place, mask=place < size, other=0.0).to(tl.float32) - norm_q
        log_p = tl.load(targets + place, mask=place < size, other=0.0).to(tl.float32) - norm_p
        q, p = tl.where(place < size, tl.exp(log_q), 0.0), tl.where(place < size, tl.exp(log_p), 0.0)
        kl += tl.sum(p * (log_p - log_q), axis=0)
        overlap += tl.sum(tl.minimum(p, q), axis=0)
        rising += tl.sum(tl.where(log_q < log_p, q, 0.0), axis=0)  # where more q raises the overlap
    if KIND == KL:
        share = 1.0
    elif KIND == TV:
        share = 0.0
    else:
        share = tl.exp(-3 * overlap)  # counts as constant
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        log_q = tl.load(logits + place, mask=place < size, other=0.0).to(tl.float32) - norm_q
        log_p = tl.load(targets + place, mask=place < size, other=0.0).to(tl.float32) - norm_p
        q, p = tl.exp(log_q), tl.exp(log_p)
        slope = share * (q - p) + (1 - share) * (q * rising - tl.where(log_q < log_p, q, 0.0))
        tl.store(logits + place, slope.to(logits.dtype.element_ty), mask=place < size)
    tl.store(losses + row, share * kl + (1 - share) * (1 - overlap))
    tl.store(predictions + row, best)


@triton.jit
def _better(x, start, best, largest):
    """The place of the largest value so far, the first of equals."""
    value, place = tl.max(x, axis=0, return_indices=True)
    return tl.where(value > largest, (start + place).to(tl.int64), best), tl.maximum(value, largest)


@triton.jit
def _more(x, peak, total):
    """Largest value and sum of exponentials with one more block."""
    higher = tl.maximum(peak, tl.max(x, axis=0))
    return higher, total * tl.exp(peak - higher) + tl.sum(tl.exp(x - higher), axis=0)
