"""The loss kernels, run by Triton's interpreter on a CPU, against float64. `test_kernels.py` starts it.

Rows of several blocks, the last one not full. What is left is float32's own rounding of sums over 300 terms: 1e-5 in a loss of 20.
A slope is stored in the logits' dtype: bfloat16 keeps 8 bits, and the interpreter cuts off where a GPU rounds, hence 2 ** -7.
"""

import torch
from torch import Tensor

from torchspec.nn import loss_kernels

ROWS, CLOSE = 7, {"rtol": 1e-5, "atol": 1e-5}
SLOPE = {torch.float32: CLOSE, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5}}
loss_kernels.BLOCK = 64


def logits_of(rows: int, size: int, generator: torch.Generator) -> Tensor:
    logits = 3 * torch.randn(rows, size, generator=generator)
    logits[0, [5, size - 3]] = 20.0  # equal in two blocks: the first counts
    return logits


def ran(kernel, logits: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor]:
    slope, losses, predictions = logits.clone(), torch.full((len(logits),), torch.nan), torch.full((len(logits),), -1)
    kernel(slope, *arguments, losses, predictions)
    return losses, slope, predictions


def expected(logits: Tensor, loss) -> tuple[Tensor, Tensor, Tensor]:
    exact = logits.double().requires_grad_()
    losses = loss(exact)
    losses.sum().backward()
    return losses.detach().float(), exact.grad.float(), logits.argmax(-1)


def divergence(logits: Tensor, p: Tensor, kind: str) -> Tensor:
    q = logits.softmax(-1)
    kl, tv = (p * (p.log() - logits.log_softmax(-1))).sum(-1), 0.5 * (p - q).abs().sum(-1)
    share = {"kl": 1.0, "tv": 0.0, "lk": torch.exp(-3 * (1 - tv.detach()))}[kind]
    return share * kl + (1 - share) * tv


def compare(kernel, logits: Tensor, loss) -> None:
    """All rows, and none."""
    exact = expected(logits, loss)
    for found, wanted, close in zip(ran(kernel, logits), exact, (CLOSE, SLOPE[logits.dtype], CLOSE), strict=True):
        torch.testing.assert_close(found.to(wanted.dtype), wanted, **close)
    assert all(len(x) == 0 for x in ran(kernel, logits[:0]))


def cross_entropies(logits: Tensor, generator: torch.Generator) -> None:
    size = logits.shape[1]
    labels = torch.randint(size, (ROWS,), generator=generator)
    for bias in (None, torch.randn(size, generator=generator)):

        def kernel(x, *out, bias=bias):
            loss_kernels.cross_entropy_(x, bias, labels[: len(x)], *out)

        def loss(x, bias=bias):
            return torch.nn.functional.cross_entropy(x if bias is None else x + bias.double(), labels, reduction="none")

        compare(kernel, logits, loss)


def divergences(logits: Tensor, generator: torch.Generator) -> None:
    targets, rows = logits_of(4, logits.shape[1], generator).to(logits.dtype), torch.randint(4, (ROWS,), generator=generator)
    p = targets.double().softmax(-1)[rows]
    for kind in loss_kernels.KINDS:

        def kernel(x, *out, kind=kind):
            loss_kernels.divergence_(x, targets, rows[: len(x)], kind, *out)

        compare(kernel, logits, lambda x, kind=kind: divergence(x, p, kind))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in SLOPE:
        for size in (64, 101, 300):
            logits = logits_of(ROWS, size, generator).to(dtype)
            cross_entropies(logits, generator)
            divergences(logits, generator)


if __name__ == "__main__":
    main()
