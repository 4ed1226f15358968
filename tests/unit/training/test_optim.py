"""Learning rates against the schedule written out; optimizers by what they do to each parameter."""

import math

import pytest
import torch
from torch import nn

from torchspec.nn.layers import TokenEmbedding, TokenReadout, TokenTable
from torchspec.training.config import TrainingConfig
from torchspec.training.optim import build_optimizers, learning_rate


def rates(total: int, **values) -> list[float]:
    training = TrainingConfig(**{"learning_rate": 1.0, "min_lr": 0.1, "warmup_ratio": 0.1, **values})
    return [learning_rate(step, total, training) for step in range(total)]


@pytest.mark.parametrize("style", ["cosine", "constant", "WSD"])
@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (95, 10), (7, 1), (1, 1)])
def test_the_warm_up_is_a_line_that_reaches_the_peak_at_its_last_step(style, total, warmup):
    assert rates(total, lr_decay_style=style)[:warmup] == pytest.approx([(i + 1) / warmup for i in range(warmup)])


def test_without_warm_up_the_first_step_has_the_peak():
    for style in ("cosine", "constant", "WSD"):
        assert rates(10, lr_decay_style=style, warmup_ratio=0.0)[0] == 1.0


def test_constant_stays_at_the_peak():
    assert set(rates(100, lr_decay_style="constant")[10:]) == {1.0}


def test_cosine_is_half_a_wave_from_the_peak_to_one_step_above_the_floor():
    after = rates(110, warmup_ratio=10 / 110)[10:]
    assert after == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * i / 100)) / 2 for i in range(100)])
    assert after[0] == 1.0 and after[50] == pytest.approx(0.55) and after[-1] == pytest.approx(0.1, abs=3e-4)


@pytest.mark.parametrize(("style", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_wsd_is_flat_until_its_last_share_and_then_decays_to_the_floor(style, middle):
    values = rates(100, lr_decay_style="WSD", wsd_decay_ratio=0.2, wsd_decay_style=style)
    assert set(values[10:81]) == {1.0} and values[90] == pytest.approx(middle)
    assert all(a > b for a, b in zip(values[80:], values[81:], strict=False))
    next_step = 0.1 + 0.9 / 20 if style == "linear" else 0.1 + 0.9 * (1 + math.cos(math.pi * 0.95)) / 2
    assert values[-1] == pytest.approx(next_step)  # the floor itself would be the step after the last


def test_wsd_without_a_decay_is_constant():
    assert set(rates(50, lr_decay_style="WSD", wsd_decay_ratio=0.0)[5:]) == {1.0}


@pytest.mark.parametrize("values", [{}, {"lr_decay_style": "WSD"}, {"lr_decay_style": "constant"}, {"min_lr": 0.0}])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 997])
def test_rates_are_positive_and_never_above_the_peak_or_below_the_floor_after_warm_up(values, total):
    all_rates = rates(total, **values)
    assert 0 < min(all_rates) and max(all_rates) == 1.0
    assert min(all_rates[math.ceil(0.1 * total) - 1 :]) >= values.get("min_lr", 0.1)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 4, bias=False))


@pytest.mark.parametrize(("name", "rows"), [("adamw", None), ("muon", None), ("muon", 2)])
def test_every_parameter_belongs_to_one_group_and_only_matrices_decay(name, rows):
    m = model()
    m.mask_hidden = nn.Parameter(torch.zeros(1, 1, 6))  # of P-EAGLE: a vector, which Muon would refuse
    training = TrainingConfig(optimizer=name, muon_rows=rows, learning_rate=0.01, weight_decay=0.3, adam_beta2=0.9)
    optimizers = build_optimizers(m, training)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [id(p) for group in groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in m.parameters())
    for group in groups:
        assert group["lr"] == 0.01
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.dim() == 2 else 0.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            by_muon = isinstance(optimizer, torch.optim.Muon)
            assert by_muon or group["betas"] == (0.9, 0.9)
            assert all(by_muon == (name == "muon" and parameter.dim() == 2) for parameter in group["params"])


def test_an_adamw_step_is_the_published_one():
    """First step: m/(1-b1) = g, v/(1-b2) = g^2, so a weight moves by -lr * (g / (|g| + eps) + decay * w)."""
    m = model()
    before = [p.detach().clone() for p in m.parameters()]
    (optimizer,) = build_optimizers(m, TrainingConfig(learning_rate=0.01, min_lr=0.0, weight_decay=0.3))
    m(torch.arange(8.0).view(2, 4)).square().sum().backward()
    optimizer.step()
    for old, new in zip(before, m.parameters(), strict=True):
        decay = 0.3 if new.dim() == 2 else 0.0
        expected = old * (1 - 0.01 * decay) - 0.01 * new.grad / (new.grad.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rows", [None, 4])
def test_a_muon_step_moves_a_matrix_by_about_as_much_as_an_adamw_step(rows):
    """match_rms_adamw scales to a root mean square of 0.2 * lr; AdamW's typical is 0.2 to 0.4, its first step is 1."""
    m = model()
    before = m[0].weight.detach().clone()
    optimizers = build_optimizers(m, TrainingConfig(optimizer="muon", muon_rows=rows, learning_rate=0.01, min_lr=0.0))
    m(torch.randn(16, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = float((m[0].weight.detach() - before).square().mean().sqrt()) / 0.01
    assert 0.1 < moved < 0.3  # the five Newton-Schulz steps leave singular values between 0.7 and 1.2


def test_muon_leaves_tables_of_tokens_and_kernels_of_three_dimensions_to_adamw():
    class Table(TokenTable, nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.projection = nn.Parameter(torch.ones(9, 4)), nn.Linear(4, 4, bias=False)

    m = nn.ModuleDict({"table": Table()})
    m.kernel = nn.Parameter(torch.ones(2, 3, 4))
    muon, adamw = build_optimizers(m, TrainingConfig(optimizer="muon", weight_decay=0.3))
    assert [group["params"] for group in muon.param_groups] == [[m["table"].projection.weight]]
    assert [(group["params"], group["weight_decay"]) for group in adamw.param_groups] == [([m["table"].rows], 0.3), ([m.kernel], 0.0)]


def test_muon_leaves_tables_of_tokens_to_adamw_where_unseen_rows_stay():
    """A row without an example has no gradient: AdamW does not move it, an orthogonal update of the whole table would."""
    torch.manual_seed(0)
    m = nn.ModuleDict({"table": TokenEmbedding(6, 4), "readout": TokenReadout(4, 6, bias=False), "matrix": nn.Linear(4, 4, bias=False)})
    before = m["table"].weight.detach().clone()
    optimizers = build_optimizers(m, TrainingConfig(optimizer="muon", learning_rate=0.01, min_lr=0.0, weight_decay=0.0))
    of_muon = [
        p for optimizer in optimizers if isinstance(optimizer, torch.optim.Muon) for g in optimizer.param_groups for p in g["params"]
    ]
    assert [id(p) for p in of_muon] == [id(m["matrix"].weight)]
    m["readout"](m["matrix"](m["table"](torch.tensor([1, 3])))).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = (m["table"].weight.detach() != before).any(1)
    assert moved.tolist() == [False, True, False, True, False, False]
