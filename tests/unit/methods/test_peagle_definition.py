"""The trainer's forward, loss, gradients and metrics against P-EAGLE written out in float64, row by row; and which chains it trains."""

import math
from dataclasses import replace

import pytest
import torch

from tests.unit.methods import peagle_reference as reference
from tests.unit.methods.definition import check_chains, documents, double
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, B, all_valid, answered, lively, make_peagle, overfit, random_features, random_prompt
from torchspec.acceptance.walk import Acceptance
from torchspec.decode.offline import accepted_per_step
from torchspec.methods.blocks import seeded
from torchspec.methods.peagle.chains import DROPS, chain_lengths, draw_chains, lengths_of, shares
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.nn.logits import LogitLaw
from torchspec.training.stream import pack

# one answer; one that ends with the document and one shorter than a chain; no candidate at all; supervised from the start
MASKS = ["00001111110", "00000110111", "00010010", "111010"]
SAMPLES = [random_features(mask, i, HIDDEN * 3, EAGLE3_LAYERS) for i, mask in enumerate(MASKS)]
LENGTHS = tuple(len(sample.context) for sample in SAMPLES)
PRUNED = torch.tensor([0, 3, 4, 9, 10, 11, 17, 20, 21, 30, 31, 32, 40, 41, 50, 51, 52, 60, 61, 63])
VARIANTS = {
    "whole chains": {},
    "dropped depths": {"down_sample_ratio": 0.5, "num_layers": 1},
    "lk, pruned, all norms": {
        "loss": "lk", "ids": PRUNED, "norm_before_residual": True, "norm_before_fc": True, "fc_norm": True, "loss_step_decay": 0.5,
        "num_depths": B, "down_sample_ratio": 0.6, "down_sample_ratio_min": 0.4,
    },
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def method(request, tiny_target):
    law = LogitLaw(0.25) if "dropped" in request.param else LogitLaw()
    return make_peagle(replace(tiny_target, law=law), **VARIANTS[request.param])


@torch.no_grad()
def test_outputs_of_packed_chains_are_those_of_the_definition(method):
    """Chains of several lengths side by side, in documents that lie side by side."""
    model, batch = lively(method.skeleton()), pack(SAMPLES, epoch=0)
    groups = all_valid([[4, 7], [5, 9], [1, 2], [1, 5]], LENGTHS, 2), all_valid([[10], [1], [6], [3]], LENGTHS, B)
    parts = method.hidden(model, batch.ids, batch.context, groups).split([8, 4 * (B - 1)])
    weights, embedding = double(model), method.target.embedding.double()
    for layout, part in zip(groups, parts, strict=True):
        hidden = part.view(*layout.anchors.shape, layout.block_size - 1, -1).double()
        for n, (ids, _, context) in enumerate(documents(SAMPLES)):
            for a, anchor in enumerate(layout.anchors[n].tolist()):
                expected = reference.chain_hidden(
                    weights, method.config, embedding, [*ids, 0], context[:, :-HIDDEN], anchor, layout.block_size - 1
                )
                torch.testing.assert_close(hidden[n, a], expected, rtol=1e-4, atol=1e-4)  # float32 against float64


def test_loss_gradients_and_metrics_are_those_of_the_definition(method):
    model, batch = lively(method.skeleton()), pack(SAMPLES, epoch=0)
    groups = draw_chains(batch, method.options, seed=0)
    lengths = {
        (n, int(anchor)): layout.block_size - 1
        for layout in groups
        for n, anchors in enumerate(layout.anchors)
        for anchor in anchors[layout.valid[n]]
    }
    weights = double(model)
    expected, sums = reference.loss(weights, method, documents(SAMPLES), lambda n, anchor: lengths[n, anchor])
    whole = [1 for length in lengths.values() if length == method.options.num_depths]
    assert len(lengths) == 5 + (1 + 2) + 0 + 1 and sums["blocks"] == len(whole) and sum(sums["count"]) > 10  # not vacuous
    assert set(lengths.values()) == set(chain_lengths(method.options))
    check_chains(method, model, method.loss(model, batch, seed=0), (expected, sums), weights)


def test_shares_of_chains_fall_with_the_depth_as_published_and_each_answer_has_a_whole_one():
    """max(r^d, r_min) of the chains at depth d, out of those at depth d - 1; the published defaults, r = 0.7 and r_min = 0.2."""
    options = PeagleConfig()
    assert shares(options) == pytest.approx([1, 0.7, 0.49, 0.343, 0.2401, 0.2, 0.2, 0.2]) and chain_lengths(options) == [1, 2, 3, 4, 5, 8]
    for count in (0, 1, 3, 10, 100):
        depths = lengths_of(count, options, seeded(count))
        kept = [int((depths > depth).sum()) for depth in range(options.num_depths)]
        assert kept == [math.ceil(share * count) for share in shares(options)]
        assert set(depths.tolist()) <= set(chain_lengths(options))
    assert set(lengths_of(50, PeagleConfig(down_sample_ratio=1.0), seeded(0)).tolist()) == {8}


def test_which_chains_are_cut_short_is_drawn_for_each_sample_and_epoch(tiny_target):
    """By chance, not by place: over many draws every chain is whole equally often. The draw belongs to the sample, not to the batch."""
    options = make_peagle(tiny_target, down_sample_ratio=0.5, down_sample_ratio_min=0.5).options
    often = sum((lengths_of(10, options, seeded(0, epoch, 0, DROPS)) == 3).float() for epoch in range(400)) / 400
    assert (often - 0.5).abs().max() < 4 * 0.5 / math.sqrt(400)  # four deviations of a fair coin
    together, alone = draw_chains(pack(SAMPLES, epoch=3), options, 7), draw_chains(pack([SAMPLES[1]], epoch=3), options, 7)
    for whole, part in zip(together, alone, strict=True):
        assert whole.anchors[1][whole.valid[1]].tolist() == part.anchors[0][part.valid[0]].tolist()


def sums_of(method, model, parts) -> tuple:
    """Everything that one optimizer step sees, summed over micro-batches."""
    results = []
    for part in parts:
        loss_sum, weight_sum, metrics = method.loss(model, pack(part, epoch=2), seed=5)
        loss_sum.backward()
        results.append((loss_sum.detach(), weight_sum, metrics["slot_accuracy"][0], *metrics["block_tau"]))
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    return *map(sum, zip(*results, strict=True)), *gradients


def test_loss_and_gradient_do_not_depend_on_how_documents_fall_into_micro_batches(tiny_target):
    method = make_peagle(tiny_target, num_anchors=3, down_sample_ratio=0.7)
    model, (a, b, c, d) = lively(method.skeleton()), SAMPLES
    together = sums_of(method, model, [[a, b, c, d]])
    for ours, theirs in zip(sums_of(method, model, [[d, b], [c, a]]), together, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)  # float32 sums of up to 60, in another order


def test_a_batch_without_candidates_gives_every_parameter_a_zero_gradient(tiny_target):
    """Ranks reduce gradients together: one without supervised tokens must take part."""
    method = make_peagle(tiny_target)
    model = lively(method.skeleton())
    loss_sum, weight_sum, _ = method.loss(model, pack([SAMPLES[2]], epoch=0), seed=0)
    loss_sum.backward()
    assert loss_sum == weight_sum == 0 and all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_one_answer_of_the_target_is_learned_until_every_chain_is_right(tiny_target, eagle3_oracle):
    """With a head three times as large: the target writes the same text, but is surer of it, and no near tie is left to the last bit."""
    method = make_peagle(replace(tiny_target, head=3 * tiny_target.head), down_sample_ratio=0.7)
    sample = eagle3_oracle.capture(answered(eagle3_oracle, random_prompt(2, 8), 19))
    model = method.build(torch.Generator().manual_seed(0))
    metrics = overfit(method, model, [sample], steps=60)
    acceptance = Acceptance(B)
    for accepted, length in accepted_per_step(method, model.eval(), sample):
        acceptance.add_answer(accepted, length)
    assert (acceptance.steps, acceptance.tokens) == (5, 18)  # 4 + 4 + 4 + 4 + 2
    assert metrics["slot_accuracy"][0].tolist() == metrics["slot_accuracy"][1].tolist()
