"""The chunked frozen-head loss against eager cross-entropy in higher precision: value, gradient, predictions, memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchspec.nn import loss_tiles, losses
from torchspec.nn.logits import LogitLaw
from torchspec.nn.loss_tiles import row_argmax
from torchspec.nn.losses import LossVocabulary, frozen_head_cross_entropy, frozen_head_divergence

ROWS, WIDTH, VOCABULARY = 37, 24, 101


def inputs(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=g).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=g).to(dtype)
    labels, weights = torch.randint(VOCABULARY, (ROWS,), generator=g), torch.rand(ROWS, generator=g)
    return hidden, head, labels, weights


def eager(hidden, head, labels, weights, bias=0.0):
    reference = hidden.detach().double().requires_grad_()
    logits = reference @ head.double().T + bias
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (each * weights).sum().backward()
    return each, logits.argmax(-1), reference.grad


@pytest.mark.parametrize("chunk_rows", [1, 5, 37, 1000])
def test_value_gradient_and_predictions_equal_eager_float64(monkeypatch, chunk_rows):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk_rows * VOCABULARY)
    hidden, head, labels, weights = inputs()
    each, predictions = frozen_head_cross_entropy(hidden, head, labels)
    expected, best, gradient = eager(hidden, head, labels, weights)
    (3.0 * each * weights).sum().backward()
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(predictions, best)
    torch.testing.assert_close(hidden.grad.double(), 3.0 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_wide_vocabulary_in_several_tiles_per_product_equals_eager_float64(monkeypatch, with_bias):
    """3,001 tokens: the argmax looks at strips, the last of which overlaps its neighbour; 5 rows a product, 2 a tile."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 5 * 3001)
    monkeypatch.setattr(loss_tiles, "TILE_ELEMENTS", 2 * 3001)
    g = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(ROWS, WIDTH, generator=g).requires_grad_(), torch.randn(3001, WIDTH, generator=g)
    labels, weights = torch.randint(3001, (ROWS,), generator=g), torch.rand(ROWS, generator=g)
    bias = torch.randn(3001, generator=g) if with_bias else None
    each, predictions = frozen_head_cross_entropy(hidden, head, labels, bias)
    expected, _, gradient = eager(hidden, head, labels, weights, bias.double() if with_bias else 0.0)
    each.backward(weights)
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(predictions, (hidden @ head.T).argmax(-1))
    torch.testing.assert_close(hidden.grad.double(), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 511, 1024, 1025, 3001, 4096])
def test_row_argmax_is_the_first_of_equals(size):
    """bfloat16 logits are equal often: 20 values over all tokens."""
    x = torch.randint(20, (50, size), generator=torch.Generator().manual_seed(0)).float()
    x[0] = 1.0
    first = [next(i for i, value in enumerate(row) if value == max(row)) for row in x.tolist()]
    assert row_argmax(x).tolist() == first


def test_a_label_without_any_probability_has_a_finite_loss():
    """Logits 400 apart: the label's probability is zero in float32, its loss is 400."""
    hidden, head = torch.full((1, 1), 400.0).requires_grad_(), torch.tensor([[0.0], [1.0]])
    each, _ = frozen_head_cross_entropy(hidden, head, torch.tensor([0]))
    each.sum().backward()
    assert each.item() == 400.0 and hidden.grad.item() == 1.0


def test_bfloat16_stays_within_the_rounding_of_its_logits():
    """Logits of size 5 are rounded to 2^-6 in bfloat16; the softmax and its logarithm run in float32 and add nothing visible."""
    hidden, head, labels, weights = inputs(torch.bfloat16)
    each, _ = frozen_head_cross_entropy(hidden, head, labels)
    expected, _, gradient = eager(hidden, head, labels, weights)
    each.backward(weights)
    assert (each.double() - expected).abs().max() < 0.15
    assert (hidden.grad.double() - gradient).norm() / gradient.norm() < 0.02


def test_no_rows_give_zero_and_a_zero_gradient():
    hidden, head, labels, _ = inputs()
    each, _ = frozen_head_cross_entropy(hidden[:0], head, labels[:0])
    each.sum().backward()
    assert len(each) == 0 and torch.equal(hidden.grad, torch.zeros_like(hidden))


def divergence_inputs(scale: float = 1.0):
    g = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(ROWS, WIDTH, generator=g).requires_grad_(), scale * torch.randn(VOCABULARY, WIDTH, generator=g)
    return hidden, head, torch.randn(11, WIDTH, generator=g), torch.randint(11, (ROWS,), generator=g), torch.rand(ROWS, generator=g)


def eager_divergence(hidden, head, states, rows, weights, kind):
    reference = hidden.detach().double().requires_grad_()
    logits = reference @ head.double().T
    p, q = (states.double() @ head.double().T).softmax(-1)[rows], logits.softmax(-1)
    each = (p * (p.log() - logits.log_softmax(-1))).sum(-1)
    if kind != "kl":
        acceptance = 1 - 0.5 * (p - q).abs().sum(-1)
        share = torch.exp(-3 * acceptance.detach()) if kind == "lk" else 0.0
        each = share * each + (1 - share) * (1 - acceptance)
    (each * weights).sum().backward()
    return each, logits.argmax(-1), reference.grad


@pytest.mark.parametrize("kind", ["kl", "tv", "lk"])
@pytest.mark.parametrize("chunk_rows", [1, 5, 1000])
def test_divergence_gradient_and_predictions_equal_eager_float64(monkeypatch, chunk_rows, kind):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk_rows * VOCABULARY)
    *inputs, weights = divergence_inputs()
    each, predictions = frozen_head_divergence(*inputs, kind)
    expected, best, gradient = eager_divergence(*inputs, weights, kind)
    (3.0 * each * weights).sum().backward()
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(predictions, best)
    torch.testing.assert_close(inputs[0].grad.double(), 3.0 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", [LogitLaw(0.25), LogitLaw(2.0, 3.0)])
def test_the_targets_law_is_that_of_its_scaled_and_capped_logits(law):
    hidden, head, states, rows, _ = divergence_inputs()
    each, _ = frozen_head_divergence(hidden, head, states, rows, "kl", law)
    logits = law.scale * (states.double() @ head.double().T)
    p = (logits if law.cap is None else law.cap * torch.tanh(logits / law.cap)).softmax(-1)[rows]
    expected = (p * (p.log() - (hidden.double() @ head.double().T).log_softmax(-1))).sum(-1)
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "tv", "lk"])
def test_a_draft_that_has_the_targets_state_has_no_divergence_and_no_gradient(kind):
    """A sum of min(p, q) has a kink where p = q: its gradient there follows the rounding, and only its value is known."""
    hidden, head, states, rows, weights = divergence_inputs()
    same = states[rows].clone().requires_grad_()
    each, _ = frozen_head_divergence(same, head, states, rows, kind)
    each.backward(weights)
    assert each.abs().max() < 1e-5
    assert kind != "kl" or same.grad.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["kl", "tv", "lk"])
def test_distributions_far_apart_stay_finite(kind):
    """Logits of size 500: one token has all of p and none of q."""
    *inputs, weights = divergence_inputs(scale=100.0)
    each, _ = frozen_head_divergence(*inputs, kind)
    each.backward(weights)
    assert torch.isfinite(each).all() and torch.isfinite(inputs[0].grad).all() and each.max() > (100 if kind == "kl" else 0.5)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


def test_no_tensor_grows_with_rows_times_vocabulary(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 8 * 4096)
    for rows in (64, 2048):
        hidden, head = torch.randn(rows, 8, requires_grad=True), torch.randn(4096, 8)
        with LargestTensor() as largest:
            frozen_head_cross_entropy(hidden, head, torch.zeros(rows, dtype=torch.int64))[0].sum().backward()
        assert largest.elements <= 8 * 4096  # one chunk of logits, or the head itself


@pytest.mark.parametrize("kind", ["kl", "tv", "lk"])
def test_no_tensor_of_a_divergence_grows_with_rows_times_vocabulary(monkeypatch, kind):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 8 * 4096)
    for rows in (64, 2048):
        hidden, head, states = torch.randn(rows, 8, requires_grad=True), torch.randn(4096, 8), torch.randn(rows, 8)
        with LargestTensor() as largest:
            frozen_head_divergence(hidden, head, states, torch.arange(rows), kind)[0].sum().backward()
        assert largest.elements <= 8 * 4096


def test_a_vocabulary_of_seen_tokens_and_drawn_others_estimates_the_full_normaliser():
    g = torch.Generator().manual_seed(0)
    head, counts = torch.randn(VOCABULARY, WIDTH, generator=g) * 0.2, torch.zeros(VOCABULARY)
    counts[:20] = 1
    vocabulary, hidden = LossVocabulary(head, counts, 40), torch.randn(5, WIDTH, generator=g)
    full = (hidden @ head.T).exp().sum(-1)
    estimates = []
    for _ in range(2000):
        rows = vocabulary.draw(g)
        assert torch.equal(rows.ids[rows.index[torch.arange(20)]], torch.arange(20)) and torch.equal(head[rows.ids], rows.head)
        estimates.append((hidden @ rows.head.T + rows.bias).exp().sum(-1))
    estimates = torch.stack(estimates)
    standard_error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - full).abs() < 4 * standard_error).all()


@pytest.mark.parametrize("negatives", [None, 81, 1000])
def test_without_negatives_or_with_as_many_as_there_are_the_vocabulary_is_whole(negatives):
    head, counts = torch.randn(VOCABULARY, WIDTH), torch.zeros(VOCABULARY)
    counts[:20] = 1
    rows = LossVocabulary(head, counts, negatives).draw(torch.Generator())
    assert rows.head is head and rows.bias is None and torch.equal(rows.ids, torch.arange(VOCABULARY))
