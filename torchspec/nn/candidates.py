"""The K largest logits of each row and the row's normaliser, without a logits tensor: peak memory is one chunk of rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchspec.nn.losses import rows_at_a_time


@dataclass(frozen=True)
class Candidates:
    """The K best tokens of r rows, best first."""

    tokens: Tensor  # [r, K] int64, rows of the head
    logits: Tensor  # [r, K] float32, without a bias
    logsumexp: Tensor  # [r] float32, over the whole head, bias included

    @property
    def log_probabilities(self) -> Tensor:
        """[r, K] float32, of the softmax over the whole head."""
        return self.logits - self.logsumexp[:, None]


def candidates_of(logits: Tensor, count: int) -> Candidates:
    """Of logits that exist, [r, V]; K = count."""
    best = logits.topk(count, dim=-1)
    return Candidates(best.indices, best.values.float(), logits.float().logsumexp(-1))


def top_candidates(hidden: Tensor, head: Tensor, count: int, bias: Tensor | None = None) -> Candidates:
    """hidden [r, H], frozen head [V, H], bias [V] of its normaliser -> K = count candidates of each row.

    Logits and normaliser have a gradient where the hidden states have one, for the price of a second product with the head; detach
    them where it is not wanted. Which tokens are the candidates has none.
    """
    return Candidates(*_Candidates.apply(hidden, head, count, bias))


class _Candidates(torch.autograd.Function):
    """The head has no gradient, so d logsumexp / d hidden can be finished in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, head, count, bias):
        tokens = torch.empty(len(hidden), count, dtype=torch.int64, device=hidden.device)
        logits, logsumexp = (
            torch.empty(*size, dtype=torch.float32, device=hidden.device) for size in ((len(hidden), count), (len(hidden),))
        )
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = rows_at_a_time(head)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = hidden[part] @ head.T
            logits[part], tokens[part] = rows.topk(count, dim=-1)
            rows = rows.float() if bias is None else rows + bias
            logsumexp[part] = rows.logsumexp(-1)
            if slope is not None:
                chance = rows.sub_(logsumexp[part, None]).exp_()
                torch.mm(chance.to(head.dtype), head, out=slope[part])
        ctx.save_for_backward(head, tokens, slope)
        ctx.mark_non_differentiable(tokens)
        return tokens, logits, logsumexp

    @staticmethod
    def backward(ctx, _, of_logits, of_logsumexp):
        head, tokens, slope = ctx.saved_tensors
        gradient = of_logsumexp[:, None] * slope
        for rank in range(tokens.shape[1]):  # K rows of the head at once would be K times the hidden states
            gradient += of_logits[:, rank, None] * head[tokens[:, rank]]
        return gradient.to(slope.dtype), None, None, None
