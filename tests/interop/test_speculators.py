"""The PyPI package `speculators` saves drafts of its own; ours read them and give the logits that the package computes."""

import sys
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from tests.interop.conftest import ROOT
from tests.unit.tiny import HIDDEN, VOCABULARY, all_valid, lively, write_target
from torchspec.decode.pair import load_pair
from torchspec.methods.block.blocks import Blocks
from torchspec.nn.attention import WHOLE, BlockLayout, Sight
from torchspec.records import Features, Prompt
from torchspec.target.frozen import FrozenTarget

SPECULATORS = ROOT / ".interop" / "speculators"
LENGTH, STEPS, IDS = 40, 3, torch.tensor([1, 2, 5, 8, 13, 21, 34, 55, 60])
LAYER = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 256, "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
}  # fmt: skip
OPTIONS = {
    "plain": {}, "norm_before_residual": {"norm_before_residual": True}, "norm_before_fc": {"norm_before_fc": True},
    "EAGLE-3.1": {"fc_norm": True, "norm_output": True},
}  # fmt: skip
ROOM = {"rtol": 1e-4, "atol": 1e-4}  # float32, logits of size 10; the sums run in another order


@pytest.fixture(scope="module")
def package():
    """Its draft classes and what their configs are made of."""
    sys.path.insert(0, str(SPECULATORS))
    from speculators import SpeculatorsConfig
    from speculators.config import VerifierConfig
    from speculators.models.dflash.config import DFlashSpeculatorConfig
    from speculators.models.dflash.core import DFlashDraftModel
    from speculators.models.dflash2.config import DFlash2SpeculatorConfig
    from speculators.models.dflash2.core import DFlash2DraftModel
    from speculators.models.dspark.config import DSparkSpeculatorConfig
    from speculators.models.dspark.core import DSparkDraftModel
    from speculators.models.eagle3.config import Eagle3SpeculatorConfig
    from speculators.models.eagle3.core import Eagle3DraftModel
    from speculators.models.peagle.config import PEagleSpeculatorConfig
    from speculators.models.peagle.core import PEagleDraftModel
    from speculators.proposals.greedy import GreedyTokenProposalConfig

    def build(kind: str, target, layers, pruned: bool, **options):
        layers._attn_implementation = "eager"
        verifier = VerifierConfig.from_pretrained(str(target))
        proposal = GreedyTokenProposalConfig(speculative_tokens=STEPS)
        spec = SpeculatorsConfig(algorithm=kind, proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier)
        of_config, of_model = {
            "eagle3": (Eagle3SpeculatorConfig, Eagle3DraftModel),
            "dflash": (DFlashSpeculatorConfig, DFlashDraftModel),
            "peagle": (PEagleSpeculatorConfig, PEagleDraftModel),
            "dflash2": (DFlash2SpeculatorConfig, DFlash2DraftModel),
            "dspark": (DSparkSpeculatorConfig, DSparkDraftModel),
        }[kind]
        size = len(IDS) if pruned else VOCABULARY
        model = of_model(of_config(transformer_layer_config=layers, draft_vocab_size=size, speculators_config=spec, **options))
        if pruned:
            marked = torch.zeros(VOCABULARY, dtype=torch.bool)
            marked[IDS] = True
            model.load_vocab_mappings(marked, IDS - torch.arange(len(IDS)))
        model.load_verifier_weights()
        frozen = {n: w.clone() for n, w in model.named_parameters() if n.startswith(("embed_tokens", "lm_head", "verifier"))}
        lively(model)
        for name, weight in model.named_parameters():
            weight.data.copy_(frozen.get(name, weight))
        return model.eval()

    yield build
    sys.path.remove(str(SPECULATORS))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("speculators") / "target")


@pytest.fixture(scope="module")
def text() -> tuple[torch.Tensor, torch.Tensor]:
    """ids [L], features of two layers [L, 2H]."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY - 1, (LENGTH,), generator=g), torch.randn(LENGTH, 2 * HIDDEN, generator=g)


def watched(model, call) -> list[torch.Tensor]:
    """What its head puts out during a call."""
    kept = []
    hook = model.lm_head.register_forward_hook(lambda _m, _i, out: kept.append(out[0]))
    call()
    hook.remove()
    return kept


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True], ids=["all tokens", "pruned"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layer", [LlamaConfig, Qwen3Config])
def test_eagle3(package, target, text, tmp_path, layer, options, pruned):
    aux = {"eagle_aux_hidden_state_layer_ids": [2, 4]}
    theirs = package("eagle3", target, layer(**LAYER, num_hidden_layers=1), pruned, **aux, **OPTIONS[options])
    for own in (theirs.lm_head, theirs.embed_tokens):  # trained, so that a draft that reads the target's would differ
        own.weight.add_(0.3 * torch.randn(own.weight.shape, generator=torch.Generator().manual_seed(1)))
    theirs.save_pretrained(tmp_path)
    (ids, features), document = text, torch.zeros(1, LENGTH - 1, dtype=torch.int64)
    # their row t joins the features of x_t and x_{t+1}; a chain that starts there is our anchor t+1
    expected = torch.stack(watched(theirs, lambda: theirs(features[None, :-1], ids[None, 1:], document, ttt_steps=STEPS)))

    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    assert pair.method.layer_ids == (1, 3, 5) and pair.method.block_size == STEPS + 1
    anchors = torch.arange(1, LENGTH - STEPS)
    context = torch.cat((features, torch.zeros(LENGTH, HIDDEN)), dim=1)  # the last layer's states, which no proposal reads
    layout = all_valid([anchors.tolist()], (LENGTH,), pair.method.block_size)
    hidden = pair.method.hidden(pair.model, ids, context, layout, lambda step, _: pair.method.embed(ids[anchors + step]))
    vocabulary = pair.method.served_vocabulary(pair.model)
    assert torch.equal(vocabulary.ids, IDS if pruned else torch.arange(VOCABULARY))
    torch.testing.assert_close(hidden @ vocabulary.head.T, expected[:, anchors - 1], **ROOM)


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True], ids=["all tokens", "pruned"])
@pytest.mark.parametrize(
    "options", [{}, {"norm_before_residual": True, "norm_before_fc": True}, {"fc_norm": True}], ids=["plain", "norms", "fc_norm"]
)
@pytest.mark.parametrize("layer", [LlamaConfig, Qwen3Config])
def test_peagle(package, target, text, tmp_path, monkeypatch, layer, options, pruned):
    """Logits and loss of its training forward: all chains that it draws, of several lengths, with its own embedding and head."""
    from speculators.losses import resolve_loss_config
    from speculators.models.peagle import core

    drawn, draw = [], core.generate_cod_sample_indices
    monkeypatch.setattr(core, "generate_cod_sample_indices", lambda **asked: drawn.append(draw(**asked)) or drawn[-1])
    aux = {"eagle_aux_hidden_state_layer_ids": [2, 4], "mask_token_id": VOCABULARY - 1}
    theirs = package("peagle", target, layer(**LAYER, num_hidden_layers=2), pruned, **aux, **options)
    for own in (theirs.lm_head, theirs.embed_tokens):
        own.weight.add_(0.3 * torch.randn(own.weight.shape, generator=torch.Generator().manual_seed(1)))
    theirs.save_pretrained(tmp_path)
    (ids, features), document = text, torch.zeros(1, LENGTH - 1, dtype=torch.int64)
    last, losses = torch.randn(LENGTH, HIDDEN, generator=torch.Generator().manual_seed(2)), []
    answer = torch.arange(LENGTH - 1) > 5  # by their rows; without a prompt it draws a chain before the text
    asked = {"loss_mask": answer[None].float(), "loss_config": resolve_loss_config("kl_div", "eager"), "num_depths": STEPS}
    asked["verifier_last_hidden_states"] = last[None, 1:]
    # their row t joins the features of x_t and x_{t+1}; a chain that starts there is our anchor t + 1
    (logits,) = watched(theirs, lambda: losses.append(theirs(features[None, :-1], ids[None, 1:], document, **asked)[1]))
    expected = dict(zip(zip(*(x.tolist() for x in drawn[0]), strict=True), logits, strict=True))

    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    assert pair.method.layer_ids == (1, 3, 5) and pair.method.block_size == STEPS + 1 and pair.method.mask_token_id == VOCABULARY - 1
    chains = [[t + 1 for t in range(LENGTH) if (t, n - 1) in expected and (t, n) not in expected] for n in range(1, STEPS + 1)]
    order = [(anchor - 1, depth) for n, anchors in enumerate(chains, 1) for anchor in anchors for depth in range(n)]
    assert all(chains) and sorted(order) == sorted(expected)  # chains of every length, and no depth without those before it
    groups = tuple(all_valid([anchors], (LENGTH,), n + 1) for n, anchors in enumerate(chains, 1))
    hidden = pair.method.hidden(pair.model, ids, torch.cat((features, last), dim=1), groups)
    vocabulary, frozen = pair.method.served_vocabulary(pair.model), FrozenTarget.load(target, torch.float32)
    assert torch.equal(vocabulary.ids, IDS if pruned else torch.arange(VOCABULARY))
    ours = hidden @ vocabulary.head.T
    torch.testing.assert_close(ours, torch.stack([expected[row] for row in order]), **ROOM)
    rows = torch.tensor([row + depth for row, depth in order])  # of their targets; ours are the laws after the token behind
    log_p, log_q = (x.log_softmax(-1) for x in (frozen.normed(last[rows + 1]) @ frozen.head[vocabulary.ids].T, ours))
    torch.testing.assert_close((log_p.exp() * (log_p - log_q)).sum(-1)[answer[rows]].mean(), losses[0], **ROOM)


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True], ids=["all tokens", "pruned"])
def test_dflash(package, target, text, tmp_path, pruned):
    options = {"aux_hidden_state_layer_ids": [2, 4], "block_size": STEPS + 1, "mask_token_id": VOCABULARY - 1}
    theirs = package("dflash", target, Qwen3Config(**LAYER, num_hidden_layers=2), pruned, **options)
    theirs.save_pretrained(tmp_path)
    (ids, features), answer = text, (torch.arange(LENGTH) > 5).long()
    document, states = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, HIDDEN)
    _, expected, _, _, rows = theirs._backbone_forward(features[None], ids[None], answer[None], states, document, max_anchors=6)

    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    assert pair.method.layer_ids == (1, 3) and pair.method.block_size == STEPS + 1
    layout = all_valid([rows[:: STEPS + 1].tolist()], (LENGTH,), STEPS + 1)  # theirs draws the anchors
    hidden = pair.model(*pair.method.inputs(ids, features, layout))
    vocabulary = pair.method.served_vocabulary(pair.model)
    assert torch.equal(vocabulary.ids, IDS if pruned else torch.arange(VOCABULARY))
    torch.testing.assert_close(hidden @ vocabulary.head.T, expected[0], **ROOM)


@torch.no_grad()
def test_dflash2(package, target, text, tmp_path):
    """Logits of whole blocks, and the scores of each slot's candidates after the text's own token before it."""
    selector = {"conv_kernel_size": 3, "conv_group_size": 8, "selector_rank": 6, "selector_top_k": 5}
    options = {"aux_hidden_state_layer_ids": [2, 4], "block_size": STEPS + 1, "mask_token_id": VOCABULARY - 1, **selector}
    theirs = package("dflash2", target, Qwen3Config(**LAYER, num_hidden_layers=2), False, **options)
    theirs.save_pretrained(tmp_path)
    (ids, features), answer = text, (torch.arange(LENGTH) > 5).long()
    document, states = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, HIDDEN)
    hidden, logits, _, _, rows = theirs._backbone_forward(features[None], ids[None], answer[None], states, document, max_anchors=6)
    before = theirs._predecessor_ids(ids[None], rows).view(1, -1)
    candidates, scores = (x.unflatten(1, (-1, STEPS + 1))[0] for x in theirs.candidate_selector.select(logits, hidden, before))

    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    assert pair.method.layer_ids == (1, 3) and pair.method.block_size == STEPS + 1
    anchors = rows[:: STEPS + 1]  # theirs draws them
    prompt = Prompt(0, ids, answer.bool())
    found = next(pair.method._blocks(pair.model, Features(prompt, features, (1, 3), "random"), anchors))
    torch.testing.assert_close(found[0].states @ pair.method.target.head.T, logits[0].unflatten(0, (-1, STEPS + 1))[:, 1:], **ROOM)
    walk, last = pair.method.walk(pair.model, found[0], pair.method.whole_vocabulary), found[0].anchors
    for slot in range(STEPS):
        ours = walk.logits(last)
        assert (ours > -torch.inf).sum(1).tolist() == [5] * len(anchors)
        torch.testing.assert_close(ours.gather(1, candidates[:, slot + 1]), scores[:, slot + 1], **ROOM)
        last = found[1][:, slot]


HEADS = [("vanilla", True, False), ("gated", True, True), ("rnn", True, False), ("vanilla", False, True)]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "from_anchor", "pruned"), HEADS)
def test_dspark(package, target, text, tmp_path, kind, from_anchor, pruned):
    """Corrected logits and confidences of training blocks, fed with the text."""
    options = {"aux_hidden_state_layer_ids": [2, 4], "block_size": STEPS + 1, "mask_token_id": VOCABULARY - 1, "markov_rank": 6}
    theirs = package(
        "dspark",
        target,
        Qwen3Config(**LAYER, num_hidden_layers=2),
        pruned,
        **options,
        markov_head_type=kind,
        sample_from_anchor=from_anchor,
    )
    theirs.save_pretrained(tmp_path)
    (ids, features), answer = text, (torch.arange(LENGTH) > 5).long()
    document, states = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, HIDDEN)
    hidden, base, _, _, rows = theirs._backbone_forward(features[None], ids[None], answer[None], states, document, max_anchors=6)
    hidden, block = hidden.view(6, STEPS + 1, HIDDEN), ids[rows].view(6, STEPS + 1)
    before = block if from_anchor else torch.cat((block[:, :1], block[:, :-1]), 1)
    embedded = theirs.markov_head.prev_embeddings(before)
    logits = base.view(6, STEPS + 1, -1) + theirs.markov_head.block_bias(prev_token_ids=before, hidden_states=hidden)
    confidence = theirs.confidence_head(torch.cat((hidden, embedded), -1))

    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    assert pair.method.rows == STEPS + 1 == pair.method.block_size - from_anchor
    first = 0 if from_anchor else 1
    ours = pair.model(*pair.method.inputs(ids, features, all_valid([rows[:: STEPS + 1].tolist()], (LENGTH,), STEPS + 1)))
    ours = ours.view(6, STEPS + 1, HIDDEN)
    blocks = Blocks(ours[:, first:], block[:, 0], ours, c=torch.zeros(6, HIDDEN), last=torch.arange(6))
    walk = pair.method.walk(pair.model, blocks, pair.method.served_vocabulary(pair.model))
    for slot in range(first, STEPS + 1):
        torch.testing.assert_close(walk.confidence(before[:, slot]), confidence[:, slot], **ROOM)
        torch.testing.assert_close(walk.logits(before[:, slot]), logits[:, slot], **ROOM)


SLIDING = {"all slide": ["sliding_attention"] * 2, "one slides": ["full_attention", "sliding_attention"]}
DFLASH = {"aux_hidden_state_layer_ids": [2, 4], "block_size": STEPS + 1, "mask_token_id": VOCABULARY - 1}


def blocks(theirs, text) -> tuple[torch.Tensor, BlockLayout]:
    """Logits of the package's blocks [blocks, slots, V], and where it has drawn them."""
    (ids, features), answer = text, (torch.arange(LENGTH) > 5).long()
    document, states = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, HIDDEN)
    _, logits, _, _, rows = theirs._backbone_forward(features[None], ids[None], answer[None], states, document, max_anchors=6)
    return logits[0].unflatten(0, (-1, STEPS + 1)), all_valid([rows[:: STEPS + 1].tolist()], (LENGTH,), STEPS + 1)


@torch.no_grad()
@pytest.mark.parametrize("non_causal", [False, True], ids=["causal", "not causal"])
@pytest.mark.parametrize("layer_types", SLIDING.values(), ids=SLIDING)
def test_dflash_layers_that_slide_see_the_same_slots(package, target, text, tmp_path, layer_types, non_causal):
    """With a window longer than the text, so that only the direction within a block counts: read from its own folder."""
    layers = Qwen3Config(**LAYER, num_hidden_layers=2, layer_types=layer_types, use_sliding_window=True, sliding_window=LENGTH + STEPS + 1)
    theirs = package("dflash", target, layers, False, **DFLASH, sliding_window_non_causal=non_causal)
    theirs.save_pretrained(tmp_path)
    expected, layout = blocks(theirs, text)
    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    hidden = pair.model(*pair.method.inputs(*text, layout)).unflatten(0, (-1, STEPS + 1))
    torch.testing.assert_close(hidden @ pair.method.target.head.T, expected, **ROOM)
    pair.method.sights = tuple(WHOLE if sight.window and sight.causal else replace(sight, causal=True) for sight in pair.method.sights)
    assert (pair.model(*pair.method.inputs(*text, layout)).view_as(hidden) - hidden).abs().max() > 0.01  # planted: the other direction


@torch.no_grad()
def test_dflash_windows_reach_one_row_and_a_slot_further_in_its_training_than_in_any_server(package, target, text, tmp_path):
    """Its mask counts from the anchor: slot k sees rows from anchor - w on, where servers and we count from the slot, anchor + k - w + 1.

    Slot by slot, in one layer whose keys depend on nothing: its window w is our window w + k + 1.
    """
    window = 6
    layers = Qwen3Config(**LAYER, num_hidden_layers=1, layer_types=["sliding_attention"], use_sliding_window=True, sliding_window=window)
    theirs = package("dflash", target, layers, False, **DFLASH)
    theirs.save_pretrained(tmp_path)
    expected, layout = blocks(theirs, text)
    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    assert pair.method.sights == (Sight(window, causal=True),)
    for slot in range(STEPS + 1):
        for longer in (slot, slot + 1):
            pair.method.sights = (Sight(window + longer, causal=True),)
            hidden = pair.model(*pair.method.inputs(*text, layout)).unflatten(0, (-1, STEPS + 1))
            difference = (hidden @ pair.method.target.head.T - expected)[:, slot].abs().max()
            assert difference < 1e-4 if longer == slot + 1 else difference > 0.01
