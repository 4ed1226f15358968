"""The K largest logits of each row and the row's normaliser, without a logits tensor: peak memory is one chunk of rows."""

from collections.abc import Callable
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


def top_candidates(
    hidden: Tensor, head: Tensor, count: int, *, bias: Tensor | None = None, project: Callable[[Tensor], Tensor] | None = None
) -> Candidates:
    """hidden [r, H], frozen head [V, H], bias [V] of its normaliser -> K = count candidates of each row.

    Logits and normaliser have a gradient where the hidden states have one, for the price of a second product with the head; detach
    them where it is not wanted. Which tokens are the candidates has none. project: a prepared product with the head.
    """
    return Candidates(*_Candidates.apply(hidden, head, count, bias, project or (lambda rows: rows @ head.T)))


class _Candidates(torch.autograd.Function):
    """The head has no gradient, so d logsumexp / d hidden can be finished in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, head, count, bias, project):
        tokens = torch.empty(len(hidden), count, dtype=torch.int64, device=hidden.device)
        logits, logsumexp = torch.empty_like(tokens, dtype=torch.float32), hidden.new_empty(len(hidden), dtype=torch.float32)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = rows_at_a_time(head)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = project(hidden[part])
            logits[part], tokens[part] = rows.topk(count, dim=-1)
            rows = rows.float() if bias is None else rows + bias
            logsumexp[part] = rows.logsumexp(-1)
            if slope is not None:
                torch.mm(rows.sub_(logsumexp[part, None]).exp_().to(head.dtype), head, out=slope[part])
        ctx.save_for_backward(head, tokens, slope)
        ctx.mark_non_differentiable(tokens)
        return tokens, logits, logsumexp

    @staticmethod
    def backward(ctx, _, of_logits, of_logsumexp):
        head, tokens, slope = ctx.saved_tensors
        gradient = of_logsumexp[:, None] * slope
        for rank in range(tokens.shape[1]):  # all ranks' rows of the head at once would be K times the hidden states
            gradient += of_logits[:, rank, None] * head[tokens[:, rank]]
        return gradient.to(slope.dtype), None, None, None, None
