"""Muon (Jordan et al., 2024) where PyTorch's own takes too long: on a CPU it can be most of a step.

By blocks of rows: a product costs m^2 n with the whole matrix, and r/m of that with its blocks of r rows, each made orthogonal by itself
and to the same size (as between two whole steps of MuonBP, arXiv 2510.16981). In float32 on CPUs without bfloat16 instructions.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class RowMuon(torch.optim.Muon):
    """Takes torch.optim.Muon's options, and leaves its state; `adjust_lr_fn` is "match_rms_adamw", whatever is given."""

    def __init__(self, parameters: list[Tensor], rows: int | None, dtype: torch.dtype, lr: float, weight_decay: float):
        """rows: of a block; none: the whole matrix. dtype: of the iteration, float32 or bfloat16."""
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.rows, self.dtype = rows, dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad, memory_format=torch.preserve_format)
        buffer, momentum = state["momentum_buffer"], group["momentum"]
        buffer.lerp_(parameter.grad, 1 - momentum)
        update = parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(self._orthogonal(update, group), alpha=-group["lr"])

    def _orthogonal(self, x: Tensor, group: dict) -> Tensor:
        """Of a matrix that is dealt over ranks, every rank computes the whole and keeps its part."""
        if isinstance(x, DTensor):
            whole = self._orthogonal(x.full_tensor(), group)
            return distribute_tensor(whole, x.device_mesh, x.placements, src_data_rank=None)
        blocks = x.split(self.rows or len(x))
        moved = [orthogonal(block, group["ns_coefficients"], group["ns_steps"], self.dtype, group["eps"]) for block in blocks]
        return torch.cat([0.2 * max(block.shape) ** 0.5 * block for block in moved]).to(x.dtype)


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, dtype: torch.dtype, eps: float = 1e-7) -> Tensor:
    """[m, n] -> [m, n], singular values brought near 1 by steps of x <- (a + b g + c g^2) x, g = x x^T, as torch.optim.Muon brings them."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, coefficients, steps, dtype, eps).T
    x = (x.float() / torch.linalg.vector_norm(x.float()).clamp(min=eps)).to(dtype)
    if dtype == torch.float32:
        return _gathered(x @ x.T, coefficients, steps) @ x
    for _ in range(steps):
        x = _polynomial(x @ x.T, coefficients) @ x
    return x


def _gathered(g: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The polynomials of all steps multiply x from the left and commute, being polynomials of the first g: they are gathered on the short
    side, and x is read and written once. In bfloat16 that would lose too many digits; in float32 it does not.
    """
    gathered = p = _polynomial(g, coefficients)
    for _ in range(steps - 1):
        g = p @ g @ p
        p = _polynomial(g, coefficients)
        gathered = p @ gathered
    return gathered


def _polynomial(g: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    a, b, c = coefficients
    p = torch.addmm(g, g, g, beta=b, alpha=c)
    p.diagonal().add_(a)
    return p
