"""How a method's loss, gradients and metrics are compared with its definition, which is written out in float64."""

import pytest
import torch
from torch import Tensor, nn

from torchspec.methods.base import Method
from torchspec.records import Features


def double(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().double().requires_grad_() for name, weight in model.named_parameters()}


def documents(samples: list[Features]) -> list[tuple]:
    return [(s.prompt.ids.tolist(), s.prompt.loss_mask.tolist(), s.context.double()) for s in samples]


def check_gradients(model: nn.Module, exact: dict[str, Tensor], rtol: float = 1e-3, room: float = 1e-4) -> None:
    """float32 against float64. room: share of a parameter's largest slope that all of its slopes may be off by."""
    ours = dict(model.named_parameters())
    for name, weight in exact.items():
        atol = room * float(weight.grad.abs().max())
        torch.testing.assert_close(ours[name].grad.double(), weight.grad, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def check_head(model: nn.Module, found: tuple, defined: tuple, exact: dict[str, Tensor]) -> None:
    """found: what the method's loss returns; defined: the definition's loss, sum of weights, and right drafts."""
    (loss_sum, weight_sum, metrics), (expected, weights, right) = found, defined
    model.zero_grad()
    loss_sum.backward()
    expected.backward()
    torch.testing.assert_close(loss_sum.double(), expected, rtol=1e-5, atol=1e-5)
    assert float(weight_sum) == pytest.approx(weights, rel=1e-5) and int(metrics["slot_accuracy"][0].sum()) == right > 0
    check_gradients(model, exact)


def check_chains(method: Method, model: nn.Module, found: tuple, defined: tuple, exact: dict[str, Tensor]) -> None:
    """found: what the method's loss returns; defined: the definition's loss, and its sums and counts."""
    (loss_sum, weight_sum, metrics), (expected, sums) = found, defined
    loss_sum.backward()
    expected.backward()
    torch.testing.assert_close(loss_sum.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight_sum, torch.tensor(sums["weight"]), rtol=1e-5, atol=1e-5)
    assert [name for name, weight in exact.items() if weight.grad.abs().max() == 0] == []
    check_gradients(model, exact, rtol=2e-3, room=2e-4)
    assert metrics["slot_loss"][0].tolist() == pytest.approx(sums["loss"], rel=1e-4)
    assert metrics["slot_accuracy"][0].tolist() == sums["right"]
    assert metrics["slot_loss"][1].tolist() == metrics["slot_accuracy"][1].tolist() == sums["count"]
    assert [int(x) for x in metrics["block_tau"]] == [sums["tau"], sums["blocks"]]
    if method.config.draft_vocab_size is not None:
        assert [int(x) for x in metrics["vocabulary_coverage"]] == [sums["covered"], sum(sums["count"])]
        assert 0 < sums["covered"] < sum(sums["count"])
