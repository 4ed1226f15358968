"""Our Muon, whole and by blocks of rows, against PyTorch's own with its iteration computed in float64."""

import pytest
import torch
from torch import nn

from torchspec.training.muon import RowMuon, orthogonal

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
    torch.testing.assert_close(orthogonal(x, COEFFICIENTS, steps, torch.float32).double(), plain(x, steps), atol=1e-5, rtol=1e-4)


def test_in_bfloat16_singular_values_come_near_one():
    x = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonal(x, COEFFICIENTS, 5, torch.bfloat16).float())
    assert 0.6 < singular.min() and singular.max() < 1.25  # the published iteration leaves them between 0.7 and 1.2; rounding adds to it


def three_steps(kind) -> tuple[list, list]:
    """Of 16 -> 40 -> 16, with momentum and decay."""
    torch.manual_seed(0)
    m = nn.Sequential(nn.Linear(16, 40, bias=False), nn.Tanh(), nn.Linear(40, 16, bias=False))
    optimizer = kind(list(m.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        m(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    return list(m.parameters()), [optimizer.state[p]["momentum_buffer"] for p in m.parameters()]


def torch_muon(parameters) -> torch.optim.Muon:
    return torch.optim.Muon(parameters, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")


@pytest.fixture(autouse=True)
def _published_iteration(monkeypatch):
    """torch.optim.Muon iterates in bfloat16, so its iteration is replaced by the published one."""
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda grad, _, steps, __: plain(grad, steps).to(grad.dtype))


# five steps make a rounding 3.44^5 = 488 times larger
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


def test_a_run_is_that_of_torch_muon():
    torch.testing.assert_close(three_steps(lambda p: RowMuon(p, None, torch.float32, 0.1, 0.3)), three_steps(torch_muon), **TOLERANCE)


def test_a_matrix_by_blocks_moves_as_if_each_block_were_a_matrix():
    """40 rows in blocks of 12: 12, 12, 12 and 4."""
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(40, 16))
    parts = [nn.Parameter(block.clone()) for block in whole.detach().split(12)]
    ours, theirs = RowMuon([whole], 12, torch.float32, 0.1, 0.3), torch_muon(parts)
    for _ in range(3):
        whole.grad = torch.randn(40, 16)
        for part, grad in zip(parts, whole.grad.split(12), strict=True):
            part.grad = grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(whole.detach(), torch.cat([part.detach() for part in parts]), **TOLERANCE)
