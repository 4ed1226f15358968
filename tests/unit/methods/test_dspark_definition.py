"""DSpark's loss, gradients, proposals and format from the definition in float64, one slot at a time; planted bugs show."""

import pytest
import torch

from tests.unit.methods import dspark_reference
from tests.unit.methods.definition import double
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, LAYERS, MASK, VOCABULARY, B, answered, lively, make_dspark, make_method, random_features
from tests.unit.tiny import random_prompt as asked
from torchspec.acceptance.sampling import GREEDY
from torchspec.errors import ContractError, UserError
from torchspec.export.hf import serving_config
from torchspec.importers.own import Draft
from torchspec.methods.base import check_served
from torchspec.methods.block.blocks import Lesson
from torchspec.methods.dspark.config import DSparkConfig
from torchspec.methods.dspark.head import RecurrentHead
from torchspec.nn.loss_vocabulary import LossVocabulary
from torchspec.training.stream import pack
from torchspec.training.warm import fit

SAMPLES = [random_features(mask, i, HIDDEN * 3, EAGLE3_LAYERS) for i, mask in enumerate(["0011110111", "00110"])]
VARIANTS = {
    "vanilla": {},
    "gated": {"markov_head_type": "gated", "confidence_head_with_markov": False},
    "rnn": {"markov_head_type": "rnn"},
    "labels alone": {"loss": {"ce": 1.0}},  # the confidence still asks for the target's law
    "bonus anchor": {"sample_from_anchor": False, "markov_head_type": "rnn", "confidence_loss": 0.0},
}


@pytest.fixture(params=VARIANTS, scope="module")
def method(request, tiny_target):
    return make_dspark(tiny_target, **VARIANTS[request.param])


def tables(target) -> tuple[torch.Tensor, torch.Tensor]:
    return target.embedding.double(), target.head.double()


def documents(target, samples) -> list[tuple]:
    rows = []
    for s in samples:
        features, last = s.context.double().split([HIDDEN * 2, HIDDEN], 1)
        law = (target.normed(last.float()).double() @ target.head.double().T).log_softmax(-1)
        rows.append((s.prompt.ids.tolist(), s.prompt.loss_mask.tolist(), features, law))
    return rows


def trained(method, model) -> tuple:
    loss_sum, weight_sum, metrics = method.loss(model, pack(SAMPLES, epoch=0), seed=0)
    loss_sum.backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters()}
    model.zero_grad()
    return loss_sum.detach().double(), weight_sum, metrics, gradients


def test_loss_gradients_and_metrics_are_those_of_the_definition(method, tiny_target):
    model = lively(method.skeleton())
    loss_sum, weight_sum, metrics, gradients = trained(method, model)
    weights = double(model)
    mixture = (1.0, 0.0) if method.options.loss == {"ce": 1.0} else (0.1, 0.9)
    expected, sums = dspark_reference.loss(weights, method, tables(tiny_target), documents(tiny_target, SAMPLES), 1.0, mixture)
    expected.backward()
    torch.testing.assert_close(loss_sum, expected.detach(), rtol=1e-5, atol=1e-5)
    assert float(weight_sum) == pytest.approx(sums["weight"], rel=1e-5)
    for name, weight in weights.items():
        size = weight.grad.abs().max()
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-4 * float(size), msg=lambda m, n=name: f"{n}: {m}")
    if method.confident:
        assert float(metrics["slot_overlap"][0].sum()) == pytest.approx(sums["overlap"], rel=1e-4)
        assert int(metrics["slot_overlap"][1].sum()) == sums["count"]


@pytest.mark.parametrize("bug", ["a slot late", "no memory", "a detached confidence target"])
def test_planted_bugs_change_the_loss_or_its_gradients(tiny_target, monkeypatch, bug):
    method = make_dspark(tiny_target, **VARIANTS["rnn"])
    model = lively(method.skeleton())
    right = trained(method, model)
    if bug == "a slot late":  # each slot reads its own label
        monkeypatch.setattr(Lesson, "before", property(lambda lesson: lesson.slots.labels[:, :, 1:].flatten(0, 1)))
    elif bug == "no memory":
        monkeypatch.setattr(RecurrentHead, "factors", lambda head, e, h: head.step(e, h, torch.zeros_like(e))[0])
    else:  # the head reads states that it cannot change
        forward = type(model.confidence_head).forward
        monkeypatch.setattr(type(model.confidence_head), "forward", lambda head, states, e: forward(head, states.detach(), e))
    planted = trained(method, model)
    name = "layers.0.mlp.up_proj.weight"
    assert not torch.allclose(planted[3][name], right[3][name], rtol=1e-2)


@torch.no_grad()
def test_proposals_and_confidences_are_those_of_the_definition(method, tiny_target, eagle3_oracle):
    model, features = lively(method.skeleton()), eagle3_oracle.capture(answered(eagle3_oracle, asked(0, 9), 16))
    ids, (anchors, drafter) = features.prompt.ids.tolist(), ([3, 9, 17], method.drafter(model))
    proposed, weights, end = method.propose(model, features, torch.tensor(anchors)), double(model), 0
    for row, anchor in enumerate(anchors):
        drafter.extend(features.prompt.ids[end:anchor], features.context[end:anchor])
        context, end = features.context[:, : 2 * HIDDEN].double(), anchor
        head = method.config.dflash_config
        hidden = dspark_reference.rows(
            weights, method.config, tables(tiny_target)[0], context, anchor, ids[anchor], not head["sample_from_anchor"]
        )
        slots = dspark_reference.slots(
            weights, head["markov_head_type"], hidden, ids[anchor], tables(tiny_target)[1], lambda _, logits: int(logits.argmax())
        )
        tokens = [int(logits.argmax()) for logits, _ in slots]
        assert proposed[row].tolist() == drafter.propose(ids[anchor], GREEDY)[0].tolist() == tokens and len(tokens) == B - 1
        if method.confident:
            logits, right = method.confidences(model, features, torch.tensor([anchor]))
            torch.testing.assert_close(logits[0].double(), torch.stack([c for _, c in slots]), rtol=1e-4, atol=1e-4)
            same = [tokens[: k + 1] == ids[anchor + 1 : anchor + 2 + k] for k in range(B - 1)]
            assert right[0].tolist() == same or anchor + B > len(ids)


def test_a_new_draft_is_its_backbone(tiny_target, eagle3_oracle):
    """No correction and a confidence of one half; so a DFlash draft goes on as it was, and the heads start afresh."""
    method, plain = make_dspark(tiny_target, sample_from_anchor=False), make_method(tiny_target)
    model, backbone = method.build(torch.Generator().manual_seed(0)), lively(plain.skeleton())
    found = fit(Draft("dflash", plain.config, backbone.state_dict(), tiny_target), method, model)
    assert found.share == 1.0 and found.left == {} and all(name.startswith(("markov_head.", "confidence_head.")) for name in found.fresh)
    assert len(found.fresh) == 4 and set(found.differs) <= {"dflash_config.sample_from_anchor"}
    model.load_state_dict(found.taken, strict=False)
    features, anchors = eagle3_oracle.capture(answered(eagle3_oracle, asked(0, 9), 16)), torch.arange(2, 20)
    of_backbone = type(features)(features.prompt, features.context[:, : 2 * HIDDEN], LAYERS, features.producer)
    with torch.no_grad():
        assert torch.equal(method.propose(model, features, anchors), plain.propose(backbone, of_backbone, anchors))
        assert method.confidences(model, features, anchors)[0].abs().max() == 0
    with pytest.raises(UserError, match="computed otherwise|fills"):
        fit(Draft("dflash", plain.config, {}, tiny_target), method, model)


def test_a_loss_over_some_tokens_reads_the_readouts_rows_of_these(tiny_target):
    """Tokens outside the data are all alike in head and readout: whichever are drawn, the estimate is exact."""
    counts = torch.zeros(VOCABULARY)
    for sample in SAMPLES:
        counts += torch.bincount(sample.prompt.ids, minlength=VOCABULARY)
    method = make_dspark(tiny_target, loss={"ce": 1.0}, confidence_loss=0.0)
    model, unseen = lively(method.skeleton()), counts == 0
    head = torch.where(unseen[:, None], tiny_target.head[MASK], tiny_target.head)
    with torch.no_grad():
        readout = model.markov_head.markov_w2.weight
        readout[unseen] = readout[MASK].clone()
    samples = [type(s)(s.prompt, s.context[:, : 2 * HIDDEN], LAYERS, s.producer) for s in SAMPLES]
    losses = []
    for negatives in (None, 5):
        method.vocabulary = LossVocabulary(head, counts, negatives)
        losses.append(method.loss(model, pack(samples, epoch=0), seed=0)[0])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


CONFIG = {
    "architectures": ["Qwen3DSparkModel"], "block_size": 7, "mask_token_id": MASK, "target_layer_ids": list(LAYERS), "markov_rank": 256,
    "markov_head_type": "vanilla", "enable_confidence_head": True, "confidence_head_with_markov": True, "sample_from_anchor": True,
}  # fmt: skip


def test_the_exported_config_has_every_readers_keys(tiny_target):
    method = make_dspark(tiny_target, block_size=7, markov_rank=256)
    values = serving_config(method.config, "float32")
    assert {key: values[key] for key in CONFIG} == CONFIG
    nested = {key: value for key, value in CONFIG.items() if key != "architectures"}
    assert values["dflash_config"] == nested and method.block_size == 8
    shapes = {name: tuple(weight.shape) for name, weight in method.skeleton().named_parameters() if "head" in name}
    assert shapes == {
        "markov_head.markov_w1.weight": (VOCABULARY, 256), "markov_head.markov_w2.weight": (VOCABULARY, 256),
        "confidence_head.proj.weight": (1, HIDDEN + 256), "confidence_head.proj.bias": (1,),
    }  # fmt: skip
    tensors = method.skeleton().state_dict()
    method.check_folder("draft", values, tensors)
    with pytest.raises(ContractError, match="sample_from_anchor must stand in dflash_config and, equal, at the top"):
        method.check_folder("draft", {**values, "sample_from_anchor": False}, tensors)
    with pytest.raises(ContractError, match="markov_w1 is"):
        method.check_folder("draft", {**values, "vocab_size": 99}, tensors)


def test_defaults_are_the_papers_recipe():
    options = DSparkConfig(method="dspark")
    assert (options.loss, options.confidence_loss, options.block_size) == ({"ce": 0.1, "tv": 1.8}, 1.0, 7)
    assert (options.markov_rank, options.markov_head_type, options.sample_from_anchor) == (256, "vanilla", True)
    assert DSparkConfig(method="dspark", loss={"ce": 1.0}).taught  # the confidence's labels follow from the target's law
    assert not DSparkConfig(method="dspark", loss={"ce": 1.0}, confidence_loss=0.0).taught


def test_an_engine_without_the_head_is_refused(tiny_target):
    gated = make_dspark(tiny_target, markov_head_type="gated")
    with pytest.raises(UserError, match="cannot be served with vllm: vLLM has no gated Markov head; serve it with sglang"):
        check_served("vllm", gated)
    check_served("sglang", gated)
    check_served("vllm", make_dspark(tiny_target))
