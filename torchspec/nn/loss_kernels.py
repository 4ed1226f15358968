"""The losses of a chunk of logits on a GPU: one program per row, two or three passes over memory where PyTorch's operators make twelve.

The softmax is computed online: largest value and sum of exponentials in one pass, rescaled whenever a block holds a larger value.
float32 inside; only what is read from and written to the logits is in the model's dtype.
"""

import triton
import triton.language as tl
from torch import Tensor

from torchspec.nn.loss_tiles import KINDS

BLOCK, WARPS = 8192, 8  # tokens of one row at a time, 32 for each thread


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
    """As loss_tiles.losses_. Where there is none of a tensor the kernel is given another, which it does not touch."""
    if len(logits):
        tensors = (logits if x is None else x for x in (bias, labels, targets, rows, loss, cross_entropy, overlap, predictions))
        weights = (float(mixture.get(kind, 0.0)) for kind in KINDS)
        present = [x is not None for x in (bias, labels, targets)]
        _losses[(len(logits),)](logits, *tensors, logits.shape[1], *weights, *present, block(*present), num_warps=WARPS)


def block(biased: bool, labelled: bool, taught: bool) -> int:
    """Logits, targets and a bias at a time would take more registers than let two programs run on a multiprocessor."""
    return BLOCK // 2 if biased and taught else BLOCK


@triton.jit
def _losses(
    logits, bias, labels, targets, rows, loss, cross_entropy, overlap, predictions, size, ce, kl, tv, lk,
    BIASED: tl.constexpr, LABELLED: tl.constexpr, TAUGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * size
    if LABELLED:
        label = tl.load(labels + row)
        label_logit = tl.load(logits + label).to(tl.float32) + _bias(bias, label, label < size, BIASED)  # before a warp overwrites it
    if TAUGHT:
        targets += tl.load(rows + row) * size
    best, largest, peak_q, total_q, peak_p, total_p = tl.zeros((), tl.int64), float("-inf"), float("-inf"), 0.0, float("-inf"), 0.0
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        x = tl.load(logits + place, mask=inside, other=float("-inf")).to(tl.float32)
        best, largest = _better(x, start, best, largest)  # what the draft would propose: before the bias, which serves the normaliser
        shift = _bias(bias, place, inside, BIASED)
        peak_q, total_q = _more(x + shift, peak_q, total_q)
        if TAUGHT:
            y = tl.load(targets + place, mask=inside, other=float("-inf")).to(tl.float32)
            peak_p, total_p = _more(y + shift, peak_p, total_p)
    norm_q = peak_q + tl.log(total_q)
    scale, value = ce, 0.0
    if LABELLED:
        value = ce * (norm_q - label_logit)
        tl.store(cross_entropy + row, norm_q - label_logit)
    if TAUGHT:
        norm_p, divergence, same, rising = peak_p + tl.log(total_p), 0.0, 0.0, 0.0
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < size
            log_q, log_p = _log_q_and_p(logits, targets, bias, place, inside, norm_q, norm_p, BIASED)
            q, p = tl.where(inside, tl.exp(log_q), 0.0), tl.where(inside, tl.exp(log_p), 0.0)
            divergence += tl.sum(p * (log_p - log_q), axis=0)
            same += tl.sum(tl.minimum(p, q), axis=0)
            rising += tl.sum(tl.where(log_q < log_p, q, 0.0), axis=0)  # where more q raises the overlap
        share = tl.exp(-3 * same)  # counts as constant
        kl += lk * share
        tv += lk * (1 - share)
        scale += kl + tv * rising
        value += kl * divergence + tv * (1 - same)
        tl.store(overlap + row, same)
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        if TAUGHT:
            log_q, log_p = _log_q_and_p(logits, targets, bias, place, inside, norm_q, norm_p, BIASED)
            q = tl.exp(log_q)
            slope = scale * q - kl * tl.exp(log_p) - tl.where(log_q < log_p, tv * q, 0.0)
        else:
            x = tl.load(logits + place, mask=inside, other=float("-inf")).to(tl.float32)
            slope = scale * (tl.exp(x + _bias(bias, place, inside, BIASED) - peak_q) / total_q)
        if LABELLED:
            slope -= tl.where(place == label, ce, 0.0)
        tl.store(logits + place, slope.to(logits.dtype.element_ty), mask=inside)
    tl.store(loss + row, value)
    tl.store(predictions + row, best)


@triton.jit
def _bias(bias, place, inside, BIASED: tl.constexpr):
    """It stands for tokens that a row of the head represents, so it is the draft's and the target's."""
    if BIASED:
        return tl.load(bias + place, mask=inside, other=0.0)
    else:
        return 0.0


@triton.jit
def _log_q_and_p(logits, targets, bias, place, inside, norm_q, norm_p, BIASED: tl.constexpr):
    x, y = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32), tl.load(targets + place, mask=inside, other=0.0).to(tl.float32)
    shift = _bias(bias, place, inside, BIASED)
    return x + shift - norm_q, y + shift - norm_p


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
