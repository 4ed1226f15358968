"""DFlash2 against its definition written out in float64, one block and one slot at a time: states, loss, gradients, metrics, walk."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.methods import reference
from tests.unit.methods.dflash2_reference import added, block_hidden, scores
from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, LAYERS, MASK, B, all_valid, lively, make_dflash2, make_method, random_features
from torchspec.acceptance.sampling import Sampler
from torchspec.errors import UserError
from torchspec.methods.block.blocks import Blocks
from torchspec.methods.dflash2 import lesson, method, model
from torchspec.methods.dflash2.format import KEYS
from torchspec.methods.walk import draft, log_probabilities
from torchspec.nn import chosen
from torchspec.training.stream import pack

MASKS = ["000011111111110", "0011110001111111", "00010010", "111010"]
WIDE = HIDDEN * len(EAGLE3_LAYERS)
SAMPLES = [random_features(mask, i, WIDE, EAGLE3_LAYERS) for i, mask in enumerate(MASKS)]
K, TAPS = 5, 3


@pytest.fixture(scope="module")
def ours(tiny_target):
    return make_dflash2(tiny_target, conv_kernel_size=TAPS)


@pytest.fixture(scope="module")
def weights(ours):
    return lively(ours.skeleton())


def definition(w: dict, config, target, gamma, loss, selector_loss) -> tuple[Tensor, dict]:
    """As reference.loss, with the choice among candidates."""
    embedding, head, norm = target.embedding.double(), target.head.double(), target.norm.weight.double()
    total, sums = torch.zeros((), dtype=torch.float64), {"weight": 0.0, "right": [0] * (B - 1), "held": [0] * (B - 1), "tau": 0}
    for sample in SAMPLES:
        ids, mask, context = sample.prompt.ids.tolist(), sample.prompt.loss_mask.tolist(), sample.context.double()
        laws = (reference.rms(context[:, -HIDDEN:], norm, target.norm.variance_epsilon) @ head.T).softmax(-1)
        for anchor in reference.candidates(mask):
            states = block_hidden(w, config, embedding, context[:, :-HIDDEN], anchor, ids[anchor])
            losses, chances, prefix = [], [], 1
            for k in range(1, B):
                if anchor + k >= len(ids) or not mask[anchor + k]:
                    break
                logits, label, p = states[k] @ head.T, ids[anchor + k], laws[anchor + k - 1]
                tokens = logits.topk(K).indices.tolist()
                held = label in tokens
                tokens = tokens if held else [*tokens[:-1], label]
                q = (logits[tokens] + added(w, states[k], ids[anchor + k - 1], tokens)).softmax(0)
                law = p[tokens] / p[tokens].sum()
                value, _ = reference.slot_loss(loss, logits, label, p)
                of_label = q[tokens.index(label)]
                parts = {"ce": -of_label.log(), "tv": (law - q).abs().sum() / 2}
                losses.append(value + sum(weight * parts[kind] for kind, weight in selector_loss.items()))
                chance = of_label if "ce" in loss else torch.minimum(law, q).sum()
                chances.append(float(chance.detach()) * held)
                right = held and tokens[int(q.argmax())] == label
                prefix += right and prefix == k
                sums["right"][k - 1] += right
                sums["held"][k - 1] += held
            slot_weights = reference.slot_weights(chances, gamma)
            total = total + sum(weight * x for weight, x in zip(slot_weights, losses, strict=True))
            sums["weight"] += sum(slot_weights)
            sums["tau"] += prefix
    return total, sums


RECIPES = {
    "published best": (None, {"ce": 0.1}, {"ce": 0.1, "tv": 0.9}),
    "hard labels, decay": (4.0, {"ce": 1.0}, {"ce": 1.0}),
    "soft alone": (None, {"kl": 1.0}, {"tv": 1.0}),
}


def trained(ours, weights) -> tuple[Tensor, Tensor, dict, dict[str, Tensor]]:
    samples = SAMPLES if ours.taught else [replace(s, context=s.context[:, :-HIDDEN]) for s in SAMPLES]
    loss_sum, weight_sum, metrics = ours.loss(weights, pack(samples, epoch=0), seed=0)
    loss_sum.backward()
    gradients = {name: weight.grad.double() for name, weight in weights.named_parameters()}
    weights.zero_grad()
    return loss_sum.detach().double(), weight_sum, metrics, gradients


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_gradients_and_metrics_are_those_of_the_definition(tiny_target, weights, monkeypatch, recipe):
    gamma, loss, selector_loss = RECIPES[recipe]
    monkeypatch.setattr(chosen, "CHUNK_ELEMENTS", 7 * K * HIDDEN)  # several chunks, and one that is not full
    ours = make_dflash2(tiny_target, conv_kernel_size=TAPS, loss_decay_gamma=gamma, loss=loss, selector_loss=selector_loss)
    assert ours.taught == (recipe != "hard labels, decay")
    loss_sum, weight_sum, metrics, gradients = trained(ours, weights)
    exact = {name: weight.detach().double().requires_grad_() for name, weight in weights.named_parameters()}
    expected, sums = definition(exact, ours.config, tiny_target, gamma, loss, selector_loss)
    expected.backward()
    torch.testing.assert_close(loss_sum, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight_sum, torch.tensor(sums["weight"]), rtol=1e-5, atol=1e-5)
    for name, weight in exact.items():
        size = float(weight.grad.abs().max())
        assert size > 0, name
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-4 * size, msg=lambda m, name=name: f"{name}: {m}")
    assert 0 < sum(sums["right"]) < sum(sums["held"]) < int(metrics["slot_accuracy"][1].sum())  # the comparison is not vacuous
    assert metrics["slot_accuracy"][0].tolist() == sums["right"]
    assert metrics["slot_candidate_recall"][0].tolist() == sums["held"]
    assert int(metrics["block_tau"][0]) == sums["tau"]


def over_the_edge(x, own, base, block_size):
    """Block 0's rows reach into block 1."""
    return model_convolve(x, own, base, len(x))


model_convolve = model.convolve
PLANTED = {
    "convolution across blocks": (model, "convolve", over_the_edge),
    "a label that is no candidate is left out": (
        method,
        "with_label",
        lambda best, label: replace(lesson.with_label(best, label), rows=best),
    ),
    "a label that is no candidate counts as proposed": (
        method,
        "with_label",
        lambda best, label: replace(lesson.with_label(best, label), held=torch.ones(len(best), dtype=torch.bool)),
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_change_the_loss(ours, weights, monkeypatch, bug):
    """Of which the definition knows nothing: the comparison above has its tolerance far below."""
    right = ours.loss(weights, pack(SAMPLES, epoch=0), seed=0)
    monkeypatch.setattr(*PLANTED[bug])
    wrong = ours.loss(weights, pack(SAMPLES, epoch=0), seed=0)
    assert abs(float(wrong[0] - right[0])) > 1e-2 * float(right[0])


@torch.no_grad()
def test_a_walk_chooses_by_the_token_before_from_the_candidates_alone(ours, weights, tiny_target):
    """What is drawn from is the K-way softmax of the realised row, zero elsewhere; others' multiplier and cap come before the selector."""
    exact, head = {n: w.double() for n, w in weights.named_parameters()}, tiny_target.head.double()
    batch = pack(SAMPLES[:1], epoch=0)
    states = weights(*ours.inputs(batch.ids, batch.context, all_valid([[4, 7]], (15,)))).view(2, B, -1)[:, 1:]
    ours.config.dflash_config.update(output_multiplier=0.5, final_logit_softcapping=3.0)
    anchors = batch.ids[[4, 7]]
    blocks = Blocks(states, anchors, states, c=torch.zeros(2, HIDDEN), last=torch.arange(2))
    tokens, q = draft(ours.walk(weights, blocks, ours.whole_vocabulary), anchors, ours.whole_vocabulary, Sampler(0.7, seed=0), 64)
    ours.config.dflash_config.update(output_multiplier=1.0, final_logit_softcapping=None)
    for n in range(2):
        before = int(anchors[n])
        for k in range(B - 1):
            candidates, found = scores(exact, states[n, k].double(), head, before, K, lambda x: 3 * (x * 0.5 / 3).tanh())
            expected = torch.zeros(64, dtype=torch.float64)
            expected[candidates] = (found / 0.7).softmax(0)
            torch.testing.assert_close(q[n, k].double(), expected, rtol=1e-4, atol=1e-6)
            before = int(tokens[n, k])
    plain = log_probabilities(ours.walk(weights, blocks, ours.whole_vocabulary), anchors, tokens, ours.whole_vocabulary, 0.7)
    assert (plain.exp() - q.gather(2, tokens[:, :, None])[:, :, 0]).abs().max() > 0.01  # ours, with no multiplier and no cap, is another


@torch.no_grad()
def test_a_fresh_draft_is_the_dflash_draft_of_the_same_weights(ours, tiny_target):
    """Convolutions are the identity to the bit; of the tables almost nothing is added."""
    plain, batch = make_method(tiny_target), pack([replace(SAMPLES[0], context=SAMPLES[0].context[:, :-HIDDEN])], epoch=0)
    fresh, bare = ours.build(torch.Generator().manual_seed(0)), plain.skeleton()
    bare.load_state_dict({name: value for name, value in fresh.state_dict().items() if name in bare.state_dict()})
    inputs = plain.inputs(batch.ids, batch.context, all_valid([[4, 7]], (15,)))
    assert torch.equal(fresh(*inputs), bare(*inputs))
    states = fresh(*inputs)
    scores = fresh.candidate_selector(fresh.candidate_selector.hidden_projection(states), batch.ids[:8], torch.arange(40).view(8, K))
    assert 0 < scores.abs().max() < 1e-3


def test_drawn_negatives_leave_candidates_and_tables_in_the_ids_of_tokens(tiny_target, weights):
    """With a vocabulary of the data's tokens alone, whatever else is drawn: candidates are the best of those, scored by their own rows."""
    counts = sum(torch.bincount(s.prompt.ids, minlength=64) for s in SAMPLES).float()
    seen = counts.nonzero().flatten()
    assert (counts == 0).sum() > 10
    results = []
    for n, most in ((None, 64), (1, len(seen) + 1)):
        ours = make_dflash2(
            tiny_target, counts, conv_kernel_size=TAPS, loss_negatives=n, selector_top_k=most if n else 64, loss={"ce": 0.1}
        )
        results.append(trained(ours, weights))
    (whole, *_, g), (drawn, *_, h) = results
    table = "candidate_selector.successor_codebook"
    unseen = counts == 0
    assert 0.5 < float(drawn / whole) < 1.0  # a softmax over fewer tokens
    assert (h[table][unseen].abs().sum(1) > 0).sum() == 1 and (h[table][seen].abs().sum(1) > 0).all() and (g[table].abs().sum(1) > 0).all()


def test_keys_and_tensors_are_the_formats(ours, weights):
    assert ours.config.architectures == ["DFlash2DraftModel"] and ours.layer_ids == EAGLE3_LAYERS
    assert {key: ours.config.dflash_config[key] for key in KEYS} == {
        "conv_kernel_size": TAPS, "conv_group_size": 8, "selector_rank": 6, "selector_top_k": K,
    }  # fmt: skip
    shapes = {name: tuple(weight.shape) for name, weight in weights.named_parameters() if "conv" in name or "selector" in name}
    convs = {
        f"layers.{i}.{part}_conv.{name}": shape
        for i in range(2)
        for part in ("attention", "mlp")
        for name, shape in {"base_kernel": (2, TAPS, HIDDEN), "kernel_projection.weight": (2 * TAPS * 4, HIDDEN)}.items()
    }
    assert shapes == convs | {
        "candidate_selector.predecessor_codebook": (64, 6),
        "candidate_selector.successor_codebook": (64, 6),
        "candidate_selector.hidden_projection.weight": (6, HIDDEN),
    }


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("conv_group_size", 5, "does not divide the draft's width of 32"),
        ("selector_top_k", 65, "from 2 to the 64 tokens"),
        ("selector_rank", None, "lacks selector_rank"),
        ("input_embedding_scale", 2.0, "embeddings multiplied by 2.0"),
        ("output_multiplier", -1.0, "logits multiplied by -1.0"),
        ("sample_from_anchor", True, "from the anchor's own slot"),
    ],
)
def test_what_is_not_computed_is_refused(ours, tiny_target, key, value, says):
    config = type(ours.config).from_dict(ours.config.to_dict())
    head = {**config.dflash_config, key: value}
    config.dflash_config = {k: v for k, v in head.items() if v is not None}
    with pytest.raises(UserError, match=says):
        method.DFlash2.from_config(config, tiny_target)


def test_others_multiplier_and_cap_are_computed(ours, tiny_target):
    config = type(ours.config).from_dict(ours.config.to_dict())
    config.dflash_config = {**config.dflash_config, "output_multiplier": 0.5, "final_logit_softcapping": 30.0}
    served = method.DFlash2.from_config(config, tiny_target)
    assert served.layer_ids == LAYERS and not served.taught and served.mask_token_id == MASK
