"""Muon (Jordan et al., 2024) in float32, for CPUs without bfloat16 instructions, where PyTorch's own takes four times as long.

The Newton-Schulz iteration x <- (a + b g + c g^2) x, g = x x^T, multiplies x by polynomials of its first g alone. They commute, so that
they are gathered on the short side and x is read and written once. In bfloat16 that would lose too many digits; in float32 it does not.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class Float32Muon(torch.optim.Muon):
    """Takes torch.optim.Muon's options, and leaves its state; `adjust_lr_fn` is "match_rms_adamw", whatever is given."""

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
        rate = group["lr"] * 0.2 * max(parameter.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(_orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"]), alpha=-rate)


def _orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Of a matrix that is dealt over ranks, every rank computes the whole and keeps its part."""
    if not isinstance(x, DTensor):
        return orthogonal(x, coefficients, steps, eps)
    whole = orthogonal(x.full_tensor(), coefficients, steps, eps)
    return distribute_tensor(whole, x.device_mesh, x.placements, src_data_rank=None)


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float = 1e-7) -> Tensor:
    """[m, n] -> [m, n], singular values brought near 1, as torch.optim.Muon brings them, but in float32."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, coefficients, steps, eps).T
    a, b, c = coefficients
    x = x.float() / torch.linalg.vector_norm(x.float()).clamp(min=eps)
    g, gathered = x @ x.T, torch.eye(len(x), device=x.device)
    for step in range(steps):
        p = torch.addmm(g, g, g, beta=b, alpha=c)
        p.diagonal().add_(a)
        gathered = p @ gathered if step else p
        if step < steps - 1:
            g = p @ g @ p
    return gathered @ x
