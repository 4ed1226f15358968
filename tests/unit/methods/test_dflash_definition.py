"""The trainer's forward, loss, gradients and metrics against DFlash written out in float64, block by block and token by token."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.unit.methods import reference
from tests.unit.methods.definition import documents, double
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, LAYERS, MASK, B, all_valid, lively, make_method, random_features
from torchspec.methods.block.format import draft_config
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.dflash.method import DFlash
from torchspec.target.frozen import FrozenTarget
from torchspec.training.stream import pack

# one answer; two; one that ends with the document and one shorter than a block; no candidate at all; supervised from the start
MASKS = ["000011111111110", "0011110001111111", "00000110111", "00010010", "111010"]
SAMPLES = [random_features(mask, i) for i, mask in enumerate(MASKS)]
ANCHORS, LENGTHS = [[4, 7, 13], [0, 1, 15], [5, 9, 10], [1, 2, 6], [0, 2, 5]], tuple(len(s.context) for s in SAMPLES)


SLIDES = {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": 4}


@pytest.fixture(scope="module")
def model(tiny_method):
    return lively(tiny_method.skeleton())


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, SLIDES, {"sliding_window": 3}, {"sliding_window": 7}], ids=str)
def test_hidden_states_of_packed_blocks_are_those_of_the_definition(tiny_target, model, options):
    batch, method = pack(SAMPLES, epoch=0), make_method(tiny_target, **options)
    hidden = model(*method.inputs(batch.ids, batch.context, all_valid(ANCHORS, LENGTHS))).view(len(SAMPLES), 3, B, -1)
    weights, embedding = double(model), tiny_target.embedding.double()
    for n, a in itertools.product(range(len(SAMPLES)), range(3)):
        ids, _, features = documents(SAMPLES)[n]
        expected = reference.block_hidden(weights, method.config, embedding, features, ANCHORS[n][a], ids[ANCHORS[n][a]])
        torch.testing.assert_close(hidden[n, a].double(), expected, rtol=1e-4, atol=1e-4)  # float32 against float64


def with_laws(target) -> tuple[list, list, list[torch.Tensor]]:
    """Samples with the last layer's states, without them, and the target's law after each of their tokens in float64."""
    samples = [random_features(mask, i, HIDDEN * len(EAGLE3_LAYERS), EAGLE3_LAYERS) for i, mask in enumerate(MASKS)]
    norm, head = target.norm.weight.double(), target.head.double()
    states = (reference.rms(s.context[:, -HIDDEN:].double(), norm, target.norm.variance_epsilon) for s in samples)
    return samples, [replace(s, context=s.context[:, :-HIDDEN]) for s in samples], [(x @ head.T).softmax(-1) for x in states]


MIXED, SOFT = {"ce": 0.1, "tv": 1.8}, {"kl": 0.5, "lk": 1.0}


@pytest.mark.parametrize(
    ("gamma", "options"),
    [(None, {}), (7.0, {}), (None, SLIDES), (None, {"loss": MIXED}), (None, {"loss": SOFT})],
    ids=["D-PACE", "decay", "sliding", "mixed", "soft"],
)
def test_loss_gradients_and_metrics_are_those_of_the_definition(tiny_target, model, gamma, options):
    method = make_method(tiny_target, loss_decay_gamma=gamma, **options)
    taught = "loss" in options
    samples, read, laws = with_laws(tiny_target) if taught else (SAMPLES, SAMPLES, None)
    loss_sum, weight_sum, metrics = method.loss(model, pack(samples, epoch=0), seed=0)
    loss_sum.backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters()}
    model.zero_grad()
    weights = double(model)
    tables = tiny_target.embedding.double(), tiny_target.head.double()
    expected, sums = reference.loss(weights, method.config, *tables, gamma, documents(read), options.get("loss"), laws)
    expected.backward()
    assert sums["blocks"] == 9 + (3 + 6) + (1 + 2) + 0 + 2 and sum(sums["count"]) > sum(sums["right"])
    assert taught or sum(sums["right"]) > 0  # the comparison is not vacuous
    torch.testing.assert_close(loss_sum.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight_sum, torch.tensor(sums["weight"]), rtol=1e-5, atol=1e-5)
    for name, weight in weights.items():
        size = weight.grad.abs().max()
        torch.testing.assert_close(
            gradients[name], weight.grad, rtol=1e-3, atol=1e-4 * float(size), msg=lambda m, name=name: f"{name}: {m}"
        )
    assert metrics["slot_loss"][0].tolist() == pytest.approx(sums["loss"], rel=1e-4)
    assert metrics["slot_accuracy"][0].tolist() == sums["right"]
    assert metrics["slot_loss"][1].tolist() == metrics["slot_accuracy"][1].tolist() == sums["count"]
    assert [int(x) for x in metrics["block_tau"]] == [sums["tau"], sums["blocks"]]


@pytest.mark.parametrize("gamma", [1.0, 7.0, 1e6])
def test_slots_weigh_exp_of_minus_their_distance_over_gamma(tiny_target, model, gamma):
    method = make_method(tiny_target, loss_decay_gamma=gamma)
    loss_sum, weight_sum, metrics = method.loss(model, pack(SAMPLES, epoch=0), seed=0)
    decay = torch.exp(-torch.arange(B - 1) / gamma)
    torch.testing.assert_close(loss_sum, (metrics["slot_loss"][0] * decay).sum(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(weight_sum, (metrics["slot_loss"][1] * decay).sum(), rtol=1e-5, atol=1e-4)


def sums_of(method, model, parts) -> tuple:
    """Everything that one optimizer step sees, summed over micro-batches."""
    losses, weights, right, tau = [], [], [], []
    for part in parts:
        loss_sum, weight_sum, metrics = method.loss(model, pack(part, epoch=2), seed=5)
        loss_sum.backward()
        losses.append(loss_sum.detach())
        weights.append(weight_sum)
        right.append(metrics["slot_accuracy"][0])
        tau.append(metrics["block_tau"][0])
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    return sum(losses), sum(weights), sum(right), sum(tau), *gradients


def test_loss_and_gradient_do_not_depend_on_how_documents_fall_into_micro_batches(tiny_target, model):
    """Also with fewer anchors than candidates: the draw belongs to the sample, not to the batch."""
    method = make_method(tiny_target, num_anchors=3)
    a, b, c, d, e = SAMPLES
    together = sums_of(method, model, [[a, b, c, d, e]])
    for parts in ([[a], [b], [c], [d], [e]], [[d, b], [e, c, a]], [[c, e, d, a, b]]):
        for ours, theirs in zip(sums_of(method, model, parts), together, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_document_without_candidates_adds_nothing_to_a_batch(tiny_method, model):
    with_it, without = sums_of(tiny_method, model, [SAMPLES]), sums_of(tiny_method, model, [SAMPLES[:3] + SAMPLES[4:]])
    for ours, theirs in zip(with_it, without, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_target_wider_than_its_embedding_trains_as_the_definition_says(tiny_target):
    """H_t = 48 features per layer, H = 32 channels of the embedding, of the head and of the draft."""
    wide = type(tiny_target.config).from_dict({**tiny_target.config.to_dict(), "hidden_size": 48, "head_dim": 8})
    target = FrozenTarget(tiny_target.folder, wide, tiny_target.embedding, tiny_target.head, torch.nn.RMSNorm(48))
    options = DFlashConfig(num_layers=2, block_size=B, num_anchors=100, target_layer_ids=LAYERS)
    method = DFlash(draft_config(options, wide, (64, 32), MASK), target, options, torch.ones(64))
    assert method.config.target_hidden_size == 48
    model, samples = lively(method.skeleton()), [random_features("00001111110", 0, width=96), random_features("0111", 1, width=96)]
    loss_sum, _, _ = method.loss(model, pack(samples, epoch=0), seed=0)
    loss_sum.backward()
    weights = double(model)
    expected, _ = reference.loss(weights, method.config, target.embedding.double(), target.head.double(), None, documents(samples))
    expected.backward()
    torch.testing.assert_close(loss_sum.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.fc.weight.grad.double(), weights["fc.weight"].grad, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def alike(tiny_target) -> tuple[FrozenTarget, torch.Tensor]:
    """A head whose rows are the same for all tokens outside the data, and the counts: whichever are drawn, the estimate is exact."""
    counts = torch.zeros(64)
    for sample in SAMPLES:
        counts += torch.bincount(sample.prompt.ids, minlength=64)
    assert (counts == 0).sum() > 20
    head = torch.where((counts == 0)[:, None], tiny_target.head[MASK], tiny_target.head)
    return replace(tiny_target, head=head), counts


@pytest.mark.parametrize("negatives", [1, 5, 15])
def test_drawn_negatives_stand_for_all_tokens_outside_the_data(tiny_method, model, alike, negatives):
    results = []
    for loss_negatives in (None, negatives):
        options = tiny_method.options.model_copy(update={"loss_negatives": loss_negatives})
        loss_sum, weight_sum, metrics = DFlash(tiny_method.config, alike[0], options, alike[1]).loss(model, pack(SAMPLES, epoch=0), 0)
        loss_sum.backward()
        results.append((loss_sum.detach(), weight_sum, metrics["slot_loss"][0], *(w.grad.clone() for w in model.parameters())))
        model.zero_grad()
    for exact, estimate in zip(*results, strict=True):
        torch.testing.assert_close(estimate, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("negatives", [1, 5, 15])
@torch.no_grad()
def test_drawn_negatives_do_not_change_what_counts_as_right(tiny_method, alike, negatives):
    """A draft proposes the largest logit; the weight of a drawn token in the normaliser is no part of its logit."""
    target, counts = alike
    right = []
    for n in (None, negatives):
        method = DFlash(tiny_method.config, target, tiny_method.options.model_copy(update={"loss_negatives": n}), counts)
        models = [lively(method.skeleton(), seed) for seed in range(30)]
        right.append(sum(method.loss(m, pack(SAMPLES, epoch=0), 0)[2]["slot_accuracy"][0] for m in models).tolist())
    assert sum(right[0]) > 20 and right[0] == right[1]
