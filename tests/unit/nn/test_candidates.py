"""The K best tokens of each row with their normaliser, against the whole logits tensor in float64."""

import pytest
import torch

from torchspec.nn import losses
from torchspec.nn.candidates import top_candidates

ROWS, WIDTH, VOCABULARY, K = 7, 16, 101, 4


def case(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(ROWS, WIDTH, generator=g).to(dtype), torch.randn(VOCABULARY, WIDTH, generator=g).to(dtype)
    return hidden, head, torch.randn(VOCABULARY, generator=g)


@pytest.mark.parametrize("biased", [False, True])
def test_candidates_normaliser_and_gradient_are_those_of_the_logits_tensor(biased, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * VOCABULARY)  # three rows at a time, and one left over
    hidden, head, bias = case()
    bias = bias if biased else None
    found = top_candidates(hidden.requires_grad_(), head, K, bias=bias)
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ head.double().T
    best = logits.topk(K)
    expected = best.values - (logits if bias is None else logits + bias).logsumexp(-1, keepdim=True)
    assert torch.equal(found.tokens, best.indices) and not found.tokens.requires_grad
    torch.testing.assert_close(found.log_probabilities.double(), expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(1))
    (found.log_probabilities * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_without_a_gradient_none_is_prepared_and_the_numbers_are_float32():
    hidden, head, _ = case(torch.bfloat16)
    products = []
    found = top_candidates(hidden, head, K, project=lambda rows: products.append(rows) or rows @ head.T)
    logits = hidden @ head.T
    assert len(products) == 1 and not found.logits.requires_grad
    assert torch.equal(found.logits, logits.topk(K).values.float()) and torch.equal(found.logsumexp, logits.float().logsumexp(-1))
