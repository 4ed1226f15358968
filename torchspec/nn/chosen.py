"""Products of each row with a few rows of a large table, without a copy of those rows for all: peak memory is one chunk of rows."""

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # values of chosen rows at a time: 1,024 rows of 16 candidates at width 1,024


def chosen_products(x: Tensor, table: Tensor, chosen: Tensor) -> Tensor:
    """x [r, E], table [V, E], chosen [r, K] rows of the table -> float32 [r, K], x[i] @ table[chosen[i, j]].

    Both may have a gradient; which rows are chosen has none.
    """
    return _Products.apply(x, table, chosen)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, chosen):
        ctx.save_for_backward(x, table, chosen)
        out = torch.empty(chosen.shape, dtype=torch.float32, device=x.device)
        for part in _parts(chosen, x):
            out[part] = torch.bmm(table[chosen[part]], x[part, :, None])[..., 0]
        return out

    @staticmethod
    def backward(ctx, slopes):
        x, table, chosen = ctx.saved_tensors
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_table = torch.zeros_like(table, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in _parts(chosen, x):
            slope = slopes[part, None].to(x.dtype)  # [r', 1, K]
            if of_x is not None:
                of_x[part] = torch.bmm(slope, table[chosen[part]])[:, 0]
            if of_table is not None:
                of_table.index_add_(0, chosen[part].flatten(), (slope.mT * x[part, None]).flatten(0, 1).float())
        return of_x, None if of_table is None else of_table.to(table.dtype), None


def _parts(chosen: Tensor, x: Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // (chosen.shape[1] * x.shape[1]))
    return [slice(start, start + size) for start in range(0, len(x), size)]
