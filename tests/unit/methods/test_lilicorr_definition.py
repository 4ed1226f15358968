"""LiLiCorr's scores, walk, loss, gradients and metrics against the definition in float64, one candidate at a time; planted bugs show."""

from dataclasses import replace

import pytest
import torch

from tests.unit.methods import lilicorr_reference, reference
from tests.unit.methods.definition import double
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, B, answered, lively, make_lilicorr, overfit, random_features, random_prompt
from torchspec.acceptance.sampling import GREEDY
from torchspec.acceptance.walk import Acceptance
from torchspec.decode.offline import accepted_per_step
from torchspec.methods import walk
from torchspec.methods.block.blocks import Blocks
from torchspec.methods.lilicorr import lesson, model
from torchspec.methods.lilicorr.walk import LatticeWalk
from torchspec.records import Features
from torchspec.target.frozen import FrozenTarget
from torchspec.training.stream import pack

MASKS = ["00011111110", "1101111"]  # an answer that ends before its document; one whose first token, before which is none, is supervised
ALL, LOUD = {"ce": 0.25, "margin": 0.5, "pen": 0.75, "tv": 1.0}, 6


def loud_text(index: int, mask: str) -> Features:
    """Of a few tokens, which are candidates more often than not where their rows of the head are long."""
    sample = random_features(mask, index, HIDDEN * len(EAGLE3_LAYERS), EAGLE3_LAYERS)
    return replace(sample, prompt=replace(sample.prompt, ids=sample.prompt.ids % LOUD))


SAMPLES = [loud_text(38 + i, mask) for i, mask in enumerate(MASKS)]  # twelve slots on the path, several in one block


@pytest.fixture(scope="module")
def loud(tiny_target) -> FrozenTarget:
    scale = torch.where(torch.arange(64) < LOUD, 3.0, 1.0)
    return replace(tiny_target, head=tiny_target.head * scale[:, None])


@pytest.fixture(scope="module")
def method(loud):
    return make_lilicorr(loud, lilicorr_loss=ALL, lilicorr_candidate_topk=8)


def very_lively(method):
    """Embeddings and biases of one sign would drown what candidates see of one another."""
    draft, g = lively(method.skeleton()), torch.Generator().manual_seed(1)
    for name, weight in draft.lilicorr.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.5, generator=g)
    return draft


@pytest.fixture(scope="module")
def draft(method):
    return very_lively(method)


def read(target) -> tuple[list[tuple], list[torch.Tensor]]:
    """The documents without their last layer's states, and the target's logits after each token, of these states."""
    norm, head = target.norm.weight.double(), target.head.double()
    logits = [reference.rms(s.context[:, -HIDDEN:].double(), norm, target.norm.variance_epsilon) @ head.T for s in SAMPLES]
    return [(s.prompt.ids.tolist(), s.prompt.loss_mask.tolist(), s.context[:, :-HIDDEN].double()) for s in SAMPLES], logits


def losses(method, draft) -> tuple[torch.Tensor, torch.Tensor, dict]:
    return method.loss(draft, pack(SAMPLES, epoch=0), seed=0)


@pytest.fixture(scope="module")
def defined(method, draft, loud) -> tuple[torch.Tensor, dict, dict]:
    """The sum of the weighted losses, all counts, and the gradients."""
    weights, (documents, logits) = double(draft), read(loud)
    tables = loud.embedding.double(), loud.head.double()
    total, sums = lilicorr_reference.loss(weights, method.config, *tables, documents, {"ce": 1.0}, ALL, logits)
    total.backward()
    return total.detach(), sums, {name: weight.grad for name, weight in weights.items()}


def test_loss_gradients_and_metrics_are_those_of_the_definition(method, draft, defined):
    expected, sums, slopes = defined
    loss_sum, weight_sum, metrics = losses(method, draft)
    loss_sum.backward()
    gradients = {name: weight.grad.double() for name, weight in draft.named_parameters()}
    draft.zero_grad()
    assert sums["paths"] == 12 and 0 < sum(sums["right"]) < sum(sums["held"]) < sum(sums["count"])  # the comparison is not vacuous
    torch.testing.assert_close(loss_sum.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight_sum, torch.tensor(sums["weight"]), rtol=1e-5, atol=1e-5)
    for name, slope in slopes.items():
        room = 1e-4 * float(slope.abs().max())  # float32 against float64
        torch.testing.assert_close(gradients[name], slope, rtol=1e-3, atol=room, msg=lambda m, name=name: f"{name}: {m}")
    assert metrics["slot_covered"][0].tolist() == sums["held"] and metrics["slot_covered"][1].tolist() == sums["count"]
    assert [int(x) for x in metrics["block_tau"]] == [sums["tau"], sums["blocks"]]
    assert [int(x) for x in metrics["covered_tau"]] == [sums["covered"], sums["blocks"]]


PLANTED = {
    "a forgotten half of the cosines": (model.Lattice, "_unit", lambda self, x: x),
    "slots that are mirrored": (model.Lattice, "_bias", lambda self, slots, count, true=model.Lattice._bias: true(self, slots, count).mT),
    "a path beyond what it can reach": (lesson.TextPath, "reached", property(lambda self: self.held)),
    "a predecessor that is always the last candidate": (lesson, "text_path", None),
    "another margin": (lesson, "MARGIN", 1.0),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_change_the_loss(method, draft, defined, monkeypatch, bug):
    where, name, value = PLANTED[bug]
    if value is None:
        where, name = "torchspec.methods.lilicorr.method", "text_path"

        def value(tokens, text, scores):
            return lesson.text_path(tokens, text, scores[:, :, -1:].expand_as(scores))

    monkeypatch.setattr(*((f"{where}.{name}", value) if isinstance(where, str) else (where, name, value)))
    with torch.no_grad():
        loss_sum = losses(method, draft)[0]
    assert abs(float(loss_sum) - float(defined[0])) > 1e-4 * float(defined[0])  # ten times the tolerance of the comparison


def random_blocks(seed: int = 0) -> Blocks:
    g = torch.Generator().manual_seed(seed)
    context = torch.randn(2, HIDDEN, generator=g)
    context[1] = 0  # the second block's anchor is the first token of its text
    states = torch.randn(2, B - 1, HIDDEN, generator=g)
    return Blocks(states, torch.tensor([5, 6]), states, c=context, last=torch.arange(2))


def by_definition(method, draft, blocks: Blocks, n: int) -> tuple:
    weights = {name.removeprefix("lilicorr."): w for name, w in double(draft).items()}
    head, embedding, states = (x.double() for x in (method.target.head, method.target.embedding, blocks.states[n]))
    tokens, log_q = lilicorr_reference.best(states, head, method.config.dflash_config["lilicorr_candidate_topk"])
    c = blocks.context[n].double() if blocks.context[n].any() else None
    return tokens, *lilicorr_reference.lattice(weights, method.config, tokens, log_q, embedding, states, c)


@torch.no_grad()
@pytest.mark.parametrize("width", [24, HIDDEN, 0])
def test_the_walk_is_the_definitions_also_where_the_lattice_is_as_wide_as_the_draft(tiny_target, width):
    method = make_lilicorr(tiny_target, lilicorr_hidden_size=width or HIDDEN, lilicorr_num_heads=4)
    method.config.dflash_config["lilicorr_hidden_size"] = width  # 0 stands for the draft's
    draft, blocks = very_lively(method), random_blocks()
    found, proposals = method.walk(draft, blocks, method.whole_vocabulary), []
    for n in range(2):
        tokens, start, pair = by_definition(method, draft, blocks, n)
        torch.testing.assert_close(found.scores[n, 0].double(), start.expand(4, -1), rtol=1e-4, atol=1e-4)
        for s in range(B - 2):
            torch.testing.assert_close(found.scores[n, s + 1].double(), torch.stack(pair[s]), rtol=1e-4, atol=1e-4)
        assert found.states[n].tolist() == tokens
        proposals.append(lilicorr_reference.greedy(tokens, start, pair))
    drafted, _ = walk.draft(found, blocks.anchors, method.whole_vocabulary, GREEDY, 64)
    assert drafted.tolist() == proposals


def test_a_walk_fed_with_a_token_that_is_no_candidate_stays_finite():
    tokens, scores = torch.tensor([[[1, 2], [3, 4]]]), torch.randn(1, 2, 2, 2)
    found = LatticeWalk(tokens, scores, 6)
    found.logits(torch.tensor([0]))
    logits = found.logits(torch.tensor([5]))
    assert logits.isfinite()[0].tolist() == [False, False, False, True, True, False] and not logits.isnan().any()


def test_drawn_negatives_give_the_loss_of_the_whole_vocabulary_where_they_are_all_others(loud, method, draft):
    """As many as there are is no draw; the candidates then are those of the whole vocabulary."""
    counts = torch.zeros(64)
    for sample in SAMPLES:
        counts += torch.bincount(sample.prompt.ids, minlength=64)
    few = make_lilicorr(loud, counts, lilicorr_loss=ALL, lilicorr_candidate_topk=8, loss_negatives=8)
    drawn, whole = losses(few, draft), losses(method, draft)
    assert torch.isfinite(drawn[0]) and not torch.equal(drawn[0], whole[0])
    exact = make_lilicorr(loud, counts, lilicorr_loss=ALL, lilicorr_candidate_topk=8, loss_negatives=64)
    assert torch.equal(losses(exact, draft)[0], whole[0])


def test_one_answer_is_learned_until_every_walk_is_right(tiny_target, eagle3_oracle):
    """From the published start, by the published losses; the trainer's tau is that of the walk over the text."""
    method, sample = make_lilicorr(tiny_target), eagle3_oracle.capture(answered(eagle3_oracle, random_prompt(2, 8), 19))
    fresh = method.build(torch.Generator().manual_seed(0))
    metrics = overfit(method, fresh, [sample], steps=80)
    assert metrics["slot_accuracy"][0].tolist() == metrics["slot_accuracy"][1].tolist() == [18, 17, 16]
    acceptance = Acceptance(B)
    for accepted, length in accepted_per_step(method, fresh.eval(), sample):
        acceptance.add_answer(accepted, length)
    assert (acceptance.steps, acceptance.tokens) == (5, 18)  # 4 + 4 + 4 + 4 + 2


def test_a_draft_that_learns_from_labels_alone_captures_no_last_layer(tiny_target):
    assert make_lilicorr(tiny_target, lilicorr_loss={"ce": 1.0}).layer_ids == EAGLE3_LAYERS[:-1]
    labels = make_lilicorr(tiny_target, lilicorr_loss={"ce": 0.125, "margin": 0.125})
    samples = [replace(s, context=s.context[:, :-HIDDEN], layer_ids=EAGLE3_LAYERS[:-1]) for s in SAMPLES]
    loss_sum, _, _ = labels.loss(lively(labels.skeleton()), pack(samples, epoch=0), seed=0)
    assert torch.isfinite(loss_sum)
