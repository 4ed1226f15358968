"""The PyPI package `speculators` trains XPress: ours reads its folder, and on its weights gives its logits and the passes made of them."""

import sys

import pytest
import torch
from transformers import Qwen3Config

from tests.interop.test_speculators import LAYER, LENGTH, ROOM, SPECULATORS, STEPS, VOCABULARY, target, text  # noqa: F401 - fixtures
from tests.unit.tiny import HIDDEN, lively
from torchspec.decode.pair import load_pair
from torchspec.records import Features, Prompt

PASSES = 2


@pytest.fixture(scope="module")
def theirs(target):  # noqa: F811
    sys.path.insert(0, str(SPECULATORS))
    from speculators import SpeculatorsConfig
    from speculators.config import VerifierConfig
    from speculators.models.xpress.config import XPressSpeculatorConfig
    from speculators.models.xpress.core import XPressDraftModel
    from speculators.proposals.greedy import GreedyTokenProposalConfig

    layers = Qwen3Config(**LAYER, num_hidden_layers=2)
    layers._attn_implementation = "eager"
    proposal = GreedyTokenProposalConfig(speculative_tokens=STEPS)
    verifier = VerifierConfig.from_pretrained(str(target))
    config = XPressSpeculatorConfig(
        transformer_layer_config=layers, draft_vocab_size=VOCABULARY, aux_hidden_state_layer_ids=[2, 4], block_size=STEPS + 1,
        mask_token_id=VOCABULARY - 1, xpress_rank=6, xpress_mlp_ratio=2, num_jacobi_passes=PASSES,
        speculators_config=SpeculatorsConfig(
            algorithm="xpress", proposal_methods=[proposal], default_proposal_method="greedy", verifier=verifier
        ),
    )  # fmt: skip
    model = XPressDraftModel(config)
    model.load_verifier_weights()
    frozen = {n: w.clone() for n, w in model.named_parameters() if n.startswith(("embed_tokens", "lm_head", "verifier"))}
    lively(model)
    for name, weight in model.named_parameters():
        weight.data.copy_(frozen.get(name, weight))
    torch.nn.init.normal_(model.refiner_head.mix_l, generator=torch.Generator().manual_seed(3))
    yield model.eval()
    sys.path.remove(str(SPECULATORS))


@torch.no_grad()
def test_xpress(theirs, target, text, tmp_path):  # noqa: F811
    theirs.save_pretrained(tmp_path)
    (ids, features), answer = text, (torch.arange(LENGTH) > 5).long()
    document, states = torch.zeros(1, LENGTH, dtype=torch.int64), torch.zeros(1, LENGTH, HIDDEN)
    hidden, base, _, _, places = theirs._backbone_forward(features[None], ids[None], answer[None], states, document, max_anchors=6)
    hidden, base, anchors = (x.unflatten(0, (-1, STEPS + 1)) for x in (hidden[0], base[0], places.flatten()))
    anchors = anchors[:, 0]

    pair = load_pair(tmp_path, str(target), "float32", "cpu", False)
    method, head = pair.method, pair.model.xpress_head
    found = Features(Prompt(0, ids, answer.bool()), features, (1, 3), "random")
    blocks, words = next(method._blocks(pair.model, found, anchors))
    torch.testing.assert_close(blocks.states @ method.target.head.T, base[:, 1:], **ROOM)
    bias = theirs.refiner_head.block_bias(torch.cat((blocks.anchors[:, None], blocks.anchors[:, None], words[:, :-1]), 1), hidden)[:, 1:]
    ours = head.w2(head.factors(head.hidden(blocks.rows), blocks.anchors, torch.cat((blocks.anchors[:, None], words[:, :-1]), 1)))
    torch.testing.assert_close(ours, bias, **ROOM)
    assert bias.abs().max() > 1
    trained = theirs.refiner_head.block_bias(torch.cat((ids[anchors - 1][:, None], blocks.anchors[:, None], words[:, :-1]), 1), hidden)
    assert (trained[:, 1:] - bias).abs().max() > 0.01  # it trains with the token before the anchor, which no server has at hand

    tokens = base[:, 1:].argmax(-1)
    for _ in range(PASSES):
        before = torch.cat((blocks.anchors[:, None], blocks.anchors[:, None], tokens[:, :-1]), 1)
        tokens = (base + theirs.refiner_head.block_bias(before, hidden))[:, 1:].argmax(-1)
    assert torch.equal(method.propose(pair.model, found, anchors), tokens)
