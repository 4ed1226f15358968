"""The PyPI package `speculators` saves drafts of its own; ours read them and give the logits that the package computes."""

import sys

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from tests.interop.conftest import ROOT
from tests.unit.tiny import HIDDEN, VOCABULARY, all_valid, lively, write_target
from torchspec.decode.pair import load_pair

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
    """Its two draft classes and what their configs are made of."""
    sys.path.insert(0, str(SPECULATORS))
    from speculators import SpeculatorsConfig
    from speculators.config import VerifierConfig
    from speculators.models.dflash.config import DFlashSpeculatorConfig
    from speculators.models.dflash.core import DFlashDraftModel
    from speculators.models.eagle3.config import Eagle3SpeculatorConfig
    from speculators.models.eagle3.core import Eagle3DraftModel
    from speculators.proposals.greedy import GreedyTokenProposalConfig

    def build(kind: str, target, layers, pruned: bool, **options):
        layers._attn_implementation = "eager"
        verifier = VerifierConfig.from_pretrained(str(target))
        proposal = GreedyTokenProposalConfig(speculative_tokens=STEPS)
        spec = SpeculatorsConfig(algorithm=kind, proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier)
        of_config, of_model = {
            "eagle3": (Eagle3SpeculatorConfig, Eagle3DraftModel),
            "dflash": (DFlashSpeculatorConfig, DFlashDraftModel),
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
