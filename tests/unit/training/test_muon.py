"""Muon in float32 against PyTorch's own with its iteration computed in float64."""

import pytest
import torch
from torch import nn

from torchspec.training.muon import Float32Muon, orthogonal

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def plain(x: torch.Tensor, steps: int) -> torch.Tensor:
    """The iteration as published, in float64."""
    if len(x) > x.shape[1]:
        return plain(x.T, steps).T
    a, b, c = COEFFICIENTS
    x = x.double() / x.double().norm()
    for _ in range(steps):
        g = x @ x.T
        x = a * x + (b * g + c * g @ g) @ x
    return x


@pytest.mark.parametrize("shape", [(24, 24), (24, 64), (64, 24)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("steps", [1, 5])
def test_gathered_polynomials_are_the_iteration(shape, steps):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(x, COEFFICIENTS, steps).double(), plain(x, steps), atol=1e-5, rtol=1e-4)


def test_a_run_is_that_of_torch_muon(monkeypatch):
    """Three steps with momentum and decay. torch.optim.Muon iterates in bfloat16, so its iteration is replaced by the published one."""
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda grad, _, steps, __: plain(grad, steps).to(grad.dtype))
    runs = []
    for kind in (Float32Muon, torch.optim.Muon):
        torch.manual_seed(0)
        m = nn.Sequential(nn.Linear(16, 40, bias=False), nn.Tanh(), nn.Linear(40, 16, bias=False))
        optimizer = kind(m.parameters(), lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            optimizer.zero_grad()
            m(torch.randn(8, 16)).square().sum().backward()
            optimizer.step()
        runs.append((list(m.parameters()), [optimizer.state[p]["momentum_buffer"] for p in m.parameters()]))
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=1e-3)  # five steps make a rounding 3.44^5 = 488 times larger
