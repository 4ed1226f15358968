"""The trainer's forward, loss, gradients and metrics against EAGLE-3 written out in float64, chain by chain and step by step."""

from dataclasses import replace

import pytest
import torch

from tests.unit.methods import eagle3_reference as reference
from tests.unit.methods.definition import check_chains, documents, double
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, B, all_valid, answered, lively, make_eagle3, overfit, random_features, random_prompt
from torchspec.acceptance.walk import Acceptance
from torchspec.decode.offline import accepted_per_step
from torchspec.nn.logits import LogitLaw
from torchspec.training.stream import pack

# one answer; two; one that ends with the document and one shorter than a chain; no candidate at all; supervised from the start
MASKS = ["00001111110", "0011110001111111", "00000110111", "00010010", "111010"]
SAMPLES = [random_features(mask, i, HIDDEN * 3, EAGLE3_LAYERS) for i, mask in enumerate(MASKS)]
ANCHORS, LENGTHS = [[4, 7, 10], [1, 2, 14], [5, 9, 10], [1, 2, 6], [1, 2, 5]], tuple(len(s.context) for s in SAMPLES)
PRUNED = torch.tensor([0, 3, 4, 9, 10, 11, 17, 20, 21, 30, 31, 32, 40, 41, 50, 51, 52, 60, 61, 63])
VARIANTS = {
    "plain": {},
    "published weights": {"loss_step_decay": 0.8},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
    "pruned": {"ids": PRUNED},
    "lk": {"loss": "lk"},
    "lk, pruned, all norms": {
        "loss": "lk", "ids": PRUNED, "norm_before_residual": True, "norm_before_fc": True, "fc_norm": True, "norm_output": True,
        "loss_step_decay": 0.5,
    },
}  # fmt: skip


LAWS = {"a target that scales": LogitLaw(0.25), "a target that caps, lk, pruned": LogitLaw(1.5, 3.0)}


@pytest.fixture(params=(*VARIANTS, *LAWS))
def method(request, tiny_target):
    if request.param in VARIANTS:
        return make_eagle3(tiny_target, **VARIANTS[request.param])
    options = {"loss": "lk", "ids": PRUNED} if "pruned" in request.param else {}
    return make_eagle3(replace(tiny_target, law=LAWS[request.param]), **options)


@torch.no_grad()
def test_outputs_of_packed_chains_are_those_of_the_definition(method):
    model, batch, layout = lively(method.skeleton()), pack(SAMPLES, epoch=0), all_valid(ANCHORS, LENGTHS)
    fed = torch.randint(64, (B - 1, 15), generator=torch.Generator().manual_seed(3))  # not the text: any token may follow
    hidden = method.hidden(model, batch.ids, batch.context, layout, lambda step, _: method.embed(fed[step])).view(B - 1, 5, 3, -1)
    weights, embedding = double(model), method.target.embedding.double()
    for n, (ids, _, context) in enumerate(documents(SAMPLES)):
        for a, anchor in enumerate(ANCHORS[n]):
            tokens = [ids[anchor], *fed[1:, 3 * n + a].tolist()]
            expected = reference.chain_hidden(weights, method.config, embedding, ids, context[:, :-HIDDEN], anchor, tokens)
            torch.testing.assert_close(hidden[:, n, a].double(), expected, rtol=1e-4, atol=1e-4)  # float32 against float64


def test_loss_gradients_and_metrics_are_those_of_the_definition(method):
    model = lively(method.skeleton())
    weights = double(model)
    expected, sums = reference.loss(weights, method, documents(SAMPLES))
    assert sums["blocks"] == 5 + (3 + 6) + (1 + 2) + 0 + 1 and sum(sums["count"]) > 20  # the comparison is not vacuous
    check_chains(method, model, method.loss(model, pack(SAMPLES, epoch=0), seed=0), (expected, sums), weights)


def sums_of(method, model, parts) -> tuple:
    """Everything that one optimizer step sees, summed over micro-batches."""
    losses, weights, right = [], [], []
    for part in parts:
        loss_sum, weight_sum, metrics = method.loss(model, pack(part, epoch=2), seed=5)
        loss_sum.backward()
        losses.append(loss_sum.detach())
        weights.append(weight_sum)
        right.append(metrics["slot_accuracy"][0])
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    return sum(losses), sum(weights), sum(right), *gradients


def test_loss_and_gradient_do_not_depend_on_how_documents_fall_into_micro_batches(tiny_target):
    """Also with fewer chains than candidates: the draw belongs to the sample, not to the batch."""
    method = make_eagle3(tiny_target, num_anchors=3)
    model = lively(method.skeleton())
    a, b, c, d, e = SAMPLES
    together = sums_of(method, model, [[a, b, c, d, e]])
    for parts in ([[a], [b], [c], [d], [e]], [[d, b], [e, c, a]]):
        for ours, theirs in zip(sums_of(method, model, parts), together, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)  # float32 sums of up to 60, in another order


def test_a_batch_without_candidates_gives_every_parameter_a_zero_gradient(tiny_eagle3):
    """Ranks reduce gradients together: one without supervised tokens must take part."""
    model = lively(tiny_eagle3.skeleton())
    loss_sum, weight_sum, _ = tiny_eagle3.loss(model, pack([SAMPLES[3]], epoch=0), seed=0)
    loss_sum.backward()
    assert loss_sum == weight_sum == 0 and all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_one_answer_of_the_target_is_learned_until_every_chain_is_right(tiny_target, eagle3_oracle):
    """With a head three times as large: the target writes the same text, but is surer of it, and no near tie is left to the last bit."""
    method = make_eagle3(replace(tiny_target, head=3 * tiny_target.head))
    sample = eagle3_oracle.capture(answered(eagle3_oracle, random_prompt(2, 8), 19))
    model = method.build(torch.Generator().manual_seed(0))
    metrics = overfit(method, model, [sample], steps=300)
    assert metrics["slot_accuracy"][0].tolist() == metrics["slot_accuracy"][1].tolist() == [18, 17, 16]
    assert (metrics["slot_loss"][0] / metrics["slot_loss"][1]).max() < 0.02  # from 3; 0 is the same distribution
    acceptance = Acceptance(B)
    for accepted, length in accepted_per_step(method, model.eval(), sample):
        acceptance.add_answer(accepted, length)
    assert (acceptance.steps, acceptance.tokens) == (5, 18)  # 4 + 4 + 4 + 4 + 2
