"""The loss kernels, run by Triton's interpreter on a CPU, against float64. `test_kernels.py` starts it.

Rows of several blocks, the last one not full. Logits are float32 here: what is left is float32's own rounding of sums over 300 terms.
"""

import torch
from torch import Tensor

from torchspec.nn import loss_kernels

ROWS, CLOSE = 7, {"rtol": 1e-5, "atol": 1e-5}
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


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (64, 101, 300):
        logits, labels = logits_of(ROWS, size, generator), torch.randint(size, (ROWS,), generator=generator)
        for bias in (None, torch.randn(size, generator=generator)):
            biased = 0.0 if bias is None else bias.double()
            exact = expected(logits, lambda x, b=biased, y=labels: torch.nn.functional.cross_entropy(x + b, y, reduction="none"))
            torch.testing.assert_close(ran(loss_kernels.cross_entropy_, logits, bias, labels), exact, **CLOSE)
        targets, rows = logits_of(4, size, generator), torch.randint(4, (ROWS,), generator=generator)
        p = targets.double().softmax(-1)[rows]
        for kind in loss_kernels.KINDS:
            losses, slope, predictions = ran(lambda x, *out, t=targets, r=rows, k=kind: loss_kernels.divergence_(x, t, r, k, *out), logits)
            exact = expected(logits, lambda x, p=p, k=kind: divergence(x, p, k))
            torch.testing.assert_close((losses, slope, predictions), exact, **CLOSE)
    nothing = ran(loss_kernels.cross_entropy_, logits[:0], None, labels[:0])
    assert all(len(x) == 0 for x in nothing)


if __name__ == "__main__":
    main()
