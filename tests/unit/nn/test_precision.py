"""bfloat16 computation over float32 masters: the forward is the cast model's, the gradients arrive at the masters."""

import copy

import torch
from torch import nn

from torchspec.nn.layers import MLP, RMSNorm
from torchspec.nn.precision import ComputeIn
from torchspec.training.config import TrainingConfig
from torchspec.training.distributed import World, parallelise


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16, bias=False), RMSNorm(16, 1e-6), MLP(16, 24))


def test_forward_and_gradients_are_those_of_the_cast_model_and_arrive_in_float32():
    masters = model()
    cast = copy.deepcopy(masters).to(torch.bfloat16)
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    got, expected = ComputeIn(masters, torch.bfloat16)(x), cast(x)
    assert got.dtype == torch.bfloat16 and torch.equal(got, expected)
    for out in (got, expected):
        out.float().square().sum().backward()
    for (name, master), low in zip(masters.named_parameters(), cast.parameters(), strict=True):
        assert master.dtype == master.grad.dtype == torch.float32, name
        assert torch.equal(master.grad, low.grad.float()), name


def test_masters_move_by_steps_that_bfloat16_cannot_hold():
    """A step of 1e-4 on a weight of 1 is below bfloat16's 2^-8: only a float32 master adds up a hundred of them."""
    masters = model()
    masters[1].weight.data.fill_(1.0)
    compute, optimizer = ComputeIn(masters, torch.bfloat16), torch.optim.SGD(masters.parameters(), lr=1.0)
    for _ in range(100):
        compute(torch.ones(1, 16, dtype=torch.bfloat16)).float().sum().backward()
        for weight in masters.parameters():
            weight.grad.fill_(1e-4)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(masters[1].weight.data, torch.full((16,), 0.99), rtol=1e-5, atol=0)


def test_a_second_forward_sees_the_stepped_weights():
    masters = model()
    compute, x = ComputeIn(masters, torch.bfloat16), torch.ones(1, 16, dtype=torch.bfloat16)
    before = compute(x).detach()
    with torch.no_grad():
        masters[0].weight.mul_(-2)
    assert torch.equal(compute(x), copy.deepcopy(masters).to(torch.bfloat16)(x)) and not torch.equal(compute(x), before)


class Stack(nn.Module):
    """Two layers, as the trainer sees a draft."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(model() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_recomputed_activations_give_the_same_gradients_bit_for_bit_and_are_computed_twice():
    """The second time `ComputeIn` has put the float32 masters back: multiplied with bfloat16 activations they would raise."""
    x, gradients, calls = torch.randn(9, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16), [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        stack, count = Stack(), 0
        compute = parallelise(stack, World(0, 1, torch.device("cpu")), TrainingConfig(activation_checkpointing=recompute), torch.bfloat16)

        def seen(*_arguments):
            nonlocal count
            count += 1

        stack.layers[0][0].register_forward_hook(seen)
        compute(x).float().square().sum().backward()
        gradients.append([weight.grad for weight in stack.parameters()])
        calls.append(count)
    assert calls == [1, 2] and all(map(torch.equal, *gradients))
