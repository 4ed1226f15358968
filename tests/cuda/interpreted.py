"""The loss kernels, run by Triton's interpreter on a CPU, against float64. `test_kernels.py` starts it.

Rows of several blocks, the last one not full. What is left is float32's own rounding of sums over 300 terms: 1e-5 in a loss of 20.
A slope is stored in the logits' dtype: bfloat16 keeps 8 bits, and the interpreter cuts off where a GPU rounds, hence 2 ** -7.
"""

import torch
from torch import Tensor

from torchspec.nn import loss_kernels

ROWS, CLOSE = 7, {"rtol": 1e-5, "atol": 1e-5}
SLOPE = {torch.float32: CLOSE, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5}}
MIXTURES = [{"ce": 0.7}, {"kl": 1.0}, {"tv": 1.0}, {"lk": 1.0}, {"ce": 0.5, "kl": 0.2, "tv": 0.4, "lk": 0.3}]
loss_kernels.BLOCK = 64


def logits_of(rows: int, size: int, generator: torch.Generator) -> Tensor:
    logits = 3 * torch.randn(rows, size, generator=generator)
    logits[0, [5, size - 3]] = 20.0  # equal in two blocks: the first counts
    return logits


def expected(logits: Tensor, bias: Tensor | None, labels: Tensor, p: Tensor, mixture: dict[str, float]) -> tuple[Tensor, ...]:
    """The definition, with autograd: loss, slope, cross-entropy, overlap, predictions."""
    exact = logits.double().requires_grad_()
    log_q = (exact if bias is None else exact + bias.double()).log_softmax(-1)
    cross_entropy, q = -log_q.gather(1, labels[:, None])[:, 0], log_q.exp()
    kl, tv = (p * (p.log() - log_q)).sum(-1), 0.5 * (p - q).abs().sum(-1)
    share = torch.exp(-3 * (1 - tv.detach()))
    each = {"ce": cross_entropy, "kl": kl, "tv": tv, "lk": share * kl + (1 - share) * tv}
    loss = sum(weight * each[kind] for kind, weight in mixture.items())
    (slope,) = torch.autograd.grad(loss.sum(), exact)
    return loss.detach(), slope, cross_entropy.detach(), 1 - tv.detach(), logits.argmax(-1)


def compare(logits: Tensor, bias: Tensor | None, mixture: dict[str, float], generator: torch.Generator) -> None:
    """With labels and target where the mixture asks for them, and once more with both; all rows, and none."""
    size, hard = logits.shape[1], mixture.keys() == {"ce"}
    labels, rows = torch.randint(size, (ROWS,), generator=generator), torch.randint(4, (ROWS,), generator=generator)
    targets = logits_of(4, size, generator).to(logits.dtype)
    p = (targets.double() if bias is None else targets.double() + bias.double()).softmax(-1)[rows]
    exact = expected(logits, bias, labels, p, mixture)
    for labelled, taught in {("ce" in mixture, not hard), (True, True)}:
        slope, loss, predictions = logits.clone(), torch.full((ROWS,), torch.nan), torch.full((ROWS,), -1)
        cross_entropy, overlap = loss.clone() if labelled else None, loss.clone() if taught else None
        out = (loss, cross_entropy, overlap, predictions)
        given = (labels if labelled else None, *((targets, rows) if taught else (None, None)))
        loss_kernels.losses_(slope, bias, *given, mixture, *out)
        found = (loss, slope, cross_entropy, overlap, predictions)
        for ours, theirs, close in zip(found, exact, (CLOSE, SLOPE[logits.dtype], CLOSE, CLOSE, CLOSE), strict=True):
            if ours is not None:
                torch.testing.assert_close(ours.to(theirs.dtype), theirs, **close)
        loss_kernels.losses_(slope[:0], bias, *given, mixture, *out)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for mixture in MIXTURES:
        for biased in (False, True):
            case(torch.float32, 101, biased, mixture, generator)
    for dtype in SLOPE:
        for size in (64, 300):
            case(dtype, size, size == 300, MIXTURES[-1], generator)


def case(dtype: torch.dtype, size: int, biased: bool, mixture: dict[str, float], generator: torch.Generator) -> None:
    logits = logits_of(ROWS, size, generator).to(dtype)
    compare(logits, torch.randn(size, generator=generator) if biased else None, mixture, generator)


if __name__ == "__main__":
    main()
