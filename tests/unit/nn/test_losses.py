"""The chunked losses against the frozen head, and the definition written out with float64 logits of all rows: values, gradients, memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchspec.nn import loss_tiles, losses
from torchspec.nn.logits import AS_THEY_COME, LogitLaw
from torchspec.nn.loss_tiles import row_argmax
from torchspec.nn.losses import Correction, Teacher, head_losses

ROWS, WIDTH, VOCABULARY, STATES, FACTOR = 37, 24, 101, 11, 5
CE = {"ce": 1.0}
MIXTURES = [CE, {"ce": 0.7}, {"kl": 1.0}, {"tv": 1.0}, {"lk": 1.0}, {"ce": 0.1, "tv": 1.8}, {"ce": 0.5, "kl": 0.2, "tv": 0.4, "lk": 0.3}]
named = pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: "+".join(mixture))


class Case:
    """Random inputs; the weights of the rows depend on the losses, as D-PACE's do."""

    def __init__(self, vocabulary=VOCABULARY, dtype=torch.float32, bias=False, correction=False, law=AS_THEY_COME, scale=1.0):
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(ROWS, WIDTH, generator=g).to(dtype).requires_grad_()
        self.head = (scale * torch.randn(vocabulary, WIDTH, generator=g)).to(dtype)
        self.labels = torch.randint(vocabulary, (ROWS,), generator=g)
        self.teacher = Teacher(torch.randn(STATES, WIDTH, generator=g).to(dtype), torch.randint(STATES, (ROWS,), generator=g), law)
        self.bias = torch.randn(vocabulary, generator=g) if bias else None
        pair = [torch.randn(n, FACTOR, generator=g).to(dtype).requires_grad_() for n in (ROWS, vocabulary)]
        self.correction = Correction(*pair) if correction else None
        self.inputs = [self.hidden, *(pair if correction else [])]

    def found(self, mixture, labels=True):
        """Losses, and the gradients of the inputs."""
        soft, labels = mixture.keys() != {"ce"}, self.labels if labels else None
        teacher = self.teacher if soft else None
        found = head_losses(self.hidden, self.head, labels, mixture, teacher=teacher, bias=self.bias, correction=self.correction)
        assert found.loss.requires_grad and found.loss.dtype == torch.float32
        assert not any(x.requires_grad for x in (found.cross_entropy, found.overlap, found.predictions) if x is not None)
        assert (found.cross_entropy is None) == (labels is None) and (found.overlap is None) == (not soft)
        return found, torch.autograd.grad((3.0 * found.loss * torch.exp(-found.loss.detach())).sum(), self.inputs)

    def expected(self, mixture):
        """The same from the definition: (loss, cross-entropy, overlap, logits), gradients."""
        exact = [x.detach().double().requires_grad_() for x in self.inputs]
        logits = exact[0] @ self.head.double().T
        if self.correction is not None:
            logits = logits + exact[1] @ exact[2].T
        bias = 0.0 if self.bias is None else self.bias.double()
        states, law = self.teacher.states.double()[self.teacher.rows], self.teacher.law
        target = law.scale * (states @ self.head.double().T)
        target = target if law.cap is None else law.cap * torch.tanh(target / law.cap)
        log_p, log_q = ((x + bias).log_softmax(-1) for x in (target, logits))
        p, q = log_p.exp(), log_q.exp()
        cross_entropy = -log_q[torch.arange(ROWS), self.labels]
        kl, tv = (p * (log_p - log_q)).sum(-1), 0.5 * (p - q).abs().sum(-1)
        share = torch.exp(-3 * (1 - tv.detach()))
        each = {"ce": cross_entropy, "kl": kl, "tv": tv, "lk": share * kl + (1 - share) * tv}
        loss = sum(weight * each[kind] for kind, weight in mixture.items())
        gradients = torch.autograd.grad((3.0 * loss * torch.exp(-loss.detach())).sum(), exact)
        return (loss.detach(), cross_entropy.detach(), 1 - tv.detach(), logits.detach()), gradients

    def check(self, mixture):
        """float32 sums over a few thousand terms differ from float64's by 1e-6 or so."""
        (found, gradients), ((loss, cross_entropy, overlap, logits), exact) = self.found(mixture), self.expected(mixture)
        pairs = [(found.loss, loss), (found.cross_entropy, cross_entropy)] + ([] if found.overlap is None else [(found.overlap, overlap)])
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(gradients, exact, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.predictions, logits.argmax(-1))


@pytest.mark.parametrize("correction", [False, True], ids=["plain", "corrected"])
@named
def test_values_gradients_and_predictions_are_the_definitions(monkeypatch, mixture, correction):
    """Of one row a product, of 5, of all; of tiles of 2 rows; with a bias, which the prediction does not see."""
    for chunk_rows, tile_rows, bias in ((1, 9, False), (5, 2, True), (1000, 1000, False)):
        monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk_rows * VOCABULARY)
        monkeypatch.setattr(loss_tiles, "TILE_ELEMENTS", tile_rows * VOCABULARY)
        Case(bias=bias, correction=correction).check(mixture)


@pytest.mark.parametrize("mixture", [CE, MIXTURES[-1]], ids=["ce", "all"])
def test_a_wide_vocabulary_is_as_right(monkeypatch, mixture):
    """3,001 tokens: the argmax looks at strips, the last of which overlaps its neighbour; 5 rows a product, 2 a tile."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 5 * 3001)
    monkeypatch.setattr(loss_tiles, "TILE_ELEMENTS", 2 * 3001)
    Case(3001, bias=True, correction=True).check(mixture)


@pytest.mark.parametrize("law", [LogitLaw(0.25), LogitLaw(2.0, 3.0)])
def test_the_targets_law_is_that_of_its_scaled_and_capped_logits(law):
    Case(law=law, correction=True).check({"kl": 1.0, "tv": 1.0})


def test_labels_outside_of_a_pruned_head_are_not_asked_for():
    """The same losses and gradients without labels as with them, where no loss reads them."""
    case = Case(correction=True)
    (without, gradients), (labelled, others) = (case.found(MIXTURES[4], labels) for labels in (False, True))
    assert torch.equal(without.loss, labelled.loss) and all(map(torch.equal, gradients, others))


@pytest.mark.parametrize(
    ("labels", "teacher", "mixture", "missing"),
    [
        (True, True, {}, "no losses"),
        (True, True, {"l1": 1.0}, "l1"),
        (False, True, CE, "labels"),
        (True, False, {"ce": 1.0, "tv": 1.0}, "tv"),
    ],
)
def test_a_mixture_that_would_lose_a_part_is_refused(labels, teacher, mixture, missing):
    case = Case()
    with pytest.raises(ValueError, match=missing):
        head_losses(case.hidden, case.head, case.labels if labels else None, mixture, teacher=case.teacher if teacher else None)


PLANTED = {
    "tv is half of what it weighs": {"ce": 0.1, "tv": 0.9},
    "a kind is left out": {"ce": 0.1},
    "weights change places": {"ce": 1.8, "tv": 0.1},
}


@pytest.mark.parametrize("bug", PLANTED)
def test_the_definition_tells_mixtures_apart(bug):
    case = Case()
    case.found, found = lambda mixture: found(PLANTED[bug]), case.found
    with pytest.raises(AssertionError, match="not close"):
        case.check({"ce": 0.1, "tv": 1.8})


@pytest.mark.parametrize("mixture", [CE, MIXTURES[-2], MIXTURES[-1]], ids=["ce", "dspark", "all"])
def test_bfloat16_stays_within_the_rounding_of_its_logits(mixture):
    """Logits of size 5 are rounded to 2^-6 in bfloat16, once by each product; the softmax and its logarithm run in float32 and add nothing
    visible. Gradients are rounded where slopes and products are stored, 2^-9 each.
    """
    case = Case(dtype=torch.bfloat16, correction=True)
    (found, gradients), ((loss, *_), exact) = case.found(mixture), case.expected(mixture)
    assert (found.loss.double() - loss).abs().max() < 0.15
    for ours, theirs in zip(gradients, exact, strict=True):
        assert ours.dtype == torch.bfloat16 and (ours.double() - theirs).norm() / theirs.norm() < 0.04


def test_a_readouts_gradient_is_summed_in_float32(monkeypatch):
    """600 rows, one a product, that all ask for the same token with slope 1: a sum in bfloat16 would stop at 256."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 1)
    hidden, head = torch.zeros(600, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    factor, readout = torch.ones(600, 1, dtype=torch.bfloat16), torch.tensor([[0.0], [400.0]], dtype=torch.bfloat16, requires_grad=True)
    found = head_losses(hidden, head, torch.zeros(600, dtype=torch.int64), CE, correction=Correction(factor, readout))
    found.loss.sum().backward()
    assert readout.grad.tolist() == [[-600.0], [600.0]]


def test_a_label_without_any_probability_has_a_finite_loss():
    """Logits 400 apart: the label's probability is zero in float32, its loss is 400."""
    hidden, head = torch.full((1, 1), 400.0).requires_grad_(), torch.tensor([[0.0], [1.0]])
    each = head_losses(hidden, head, torch.tensor([0]), CE).loss
    each.sum().backward()
    assert each.item() == 400.0 and hidden.grad.item() == 1.0


@named
def test_distributions_far_apart_stay_finite(mixture):
    """Logits of size 500: one token has all of p and none of q."""
    case = Case(scale=100.0)
    found, (gradient,) = case.found(mixture)
    assert torch.isfinite(found.loss).all() and torch.isfinite(gradient).all() and found.loss.max() > 0.5


@pytest.mark.parametrize("kind", ["kl", "tv", "lk"])
def test_a_draft_that_has_the_targets_state_has_no_divergence_and_no_gradient(kind):
    """A sum of min(p, q) has a kink where p = q: its gradient there follows the rounding, and only its value is known."""
    case = Case()
    case.hidden = case.teacher.states[case.teacher.rows].clone().requires_grad_()
    case.inputs = [case.hidden]
    found, (gradient,) = case.found({kind: 1.0})
    assert found.loss.abs().max() < 1e-5 and (found.overlap - 1).abs().max() < 1e-5
    assert kind != "kl" or gradient.abs().max() < 1e-5


@pytest.mark.parametrize("correction", [False, True], ids=["plain", "corrected"])
def test_no_rows_give_zero_and_a_zero_gradient(correction):
    case = Case(correction=correction)
    correction = Correction(case.correction.factor[:0], case.correction.readout) if correction else None
    teacher = Teacher(case.teacher.states, case.teacher.rows[:0], AS_THEY_COME)
    found = head_losses(case.hidden[:0], case.head, case.labels[:0], MIXTURES[-1], teacher=teacher, correction=correction)
    gradients = torch.autograd.grad(found.loss.sum(), case.inputs)
    assert len(found.loss) == len(found.predictions) == 0 and all(torch.equal(x, torch.zeros_like(x)) for x in gradients)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("correction", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("mixture", [CE, MIXTURES[-1]], ids=["ce", "all"])
def test_no_tensor_grows_with_rows_times_vocabulary(monkeypatch, mixture, correction):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 8 * 4096)
    for rows in (64, 1024):
        hidden, head, states = torch.randn(rows, 8, requires_grad=True), torch.randn(4096, 8), torch.randn(rows, 8)
        added = Correction(*(torch.randn(n, 4, requires_grad=True) for n in (rows, 4096))) if correction else None
        teacher = None if mixture == CE else Teacher(states, torch.arange(rows), AS_THEY_COME)
        with torch.autograd.set_multithreading_enabled(False), LargestTensor() as largest:
            head_losses(hidden, head, torch.arange(rows), mixture, teacher=teacher, correction=added).loss.sum().backward()
        assert largest.elements <= 8 * 4096  # one chunk of logits, or the head itself


def test_without_a_correction_the_head_is_multiplied_twice_and_with_one_three_times_and_the_gradients_product(monkeypatch):
    """Products with the head [4096, 8] of one chunk: what the docstring says that a call costs."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 8 * 4096)

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten.mm.out and any(4096 * 8 == x.numel() and 8 in x.shape for x in args)
            return func(*args, **(kwargs or {}))

    counts = []
    for added in (None, Correction(*(torch.randn(n, 4, requires_grad=True) for n in (5, 4096)))):
        hidden, head = torch.randn(5, 8, requires_grad=True), torch.randn(4096, 8)
        with torch.autograd.set_multithreading_enabled(False), Products() as products:
            head_losses(hidden, head, torch.arange(5), CE, correction=added).loss.sum().backward()
        counts.append(products.count)
    assert counts == [2, 3]


@pytest.mark.parametrize("size", [1, 511, 1024, 1025, 3001, 4096])
def test_row_argmax_is_the_first_of_equals(size):
    """bfloat16 logits are equal often: 20 values over all tokens."""
    x = torch.randint(20, (50, size), generator=torch.Generator().manual_seed(0)).float()
    x[0] = 1.0
    first = [next(i for i, value in enumerate(row) if value == max(row)) for row in x.tolist()]
    assert row_argmax(x).tolist() == first
