"""Domino against its definition in float64: PyTorch's own GRU over a block's tokens, one block and one slot at a time.

That training is serving, and offline tau decoding's, is tested for all methods (cases.py).
"""

import pytest
import torch
from torch import nn

from tests.unit.importers.foreign import DFLASH_SHAPES, ZLAB, paired, tensors, write
from tests.unit.methods import reference
from tests.unit.methods.cases import lively_draft
from tests.unit.methods.definition import check_head, double
from tests.unit.tiny import B, make_domino, make_method, random_features
from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.export.hf import check_export, serving_config, serving_tensors
from torchspec.methods.base import check_served
from torchspec.methods.domino import walk
from torchspec.methods.domino.method import Domino
from torchspec.methods.registry import method_of
from torchspec.training.stream import pack
from torchspec.training.warm import fit, read_source

SAMPLES = [random_features(mask, i) for i, mask in enumerate(["000011111110", "0011110001111111"])]
LAYOUTS = {"shifted": {}, "DFlash's rows": {"shift_label": False, "pure_draft_prefix_len": 0}}
HEAD = {
    "prefix_gru.weight_ih_l0": (30, 32),
    "prefix_gru.weight_hh_l0": (30, 10),
    "embed_proj.0.weight": (12, 42),
    "embed_proj.2.weight": (64, 12),
}


@pytest.fixture(params=LAYOUTS, scope="module")
def method(request, tiny_target) -> Domino:
    return make_domino(tiny_target, **LAYOUTS[request.param])


@pytest.fixture(scope="module")
def model(method):
    return lively_draft(method)


class Definition:
    """late: a planted bug, the GRU lags a token behind."""

    def __init__(self, method: Domino, model: nn.Module, late: int = 0):
        self.config, self.said, self.late = method.config, method.config.dflash_config, late
        self.w = double(model)
        self.embedding, self.head = method.target.embedding.double(), method.target.head.double()

    def states(self, tokens: list[int]) -> torch.Tensor:
        """PyTorch's GRU behind each token [n, G]."""
        gru = nn.GRU(self.embedding.shape[1], self.said["gru_hidden_dim"], bias=False, dtype=torch.float64)
        weights = {name: self.w[f"prefix_gru.{name}"] for name, _ in gru.named_parameters()}
        gru._flat_weights = list(weights.values())  # what the module computes with
        return gru(self.embedding[tokens])[0]

    def logits(self, hidden: torch.Tensor, slot: int, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of slot 1.. of a block with states [B, H], after the anchor and the tokens before the slot -> with the head, without."""
        row = hidden[slot - 1 if self.said["shift_label"] else slot]
        base = row @ self.head.T
        if slot <= self.said["pure_draft_prefix_len"]:
            return base, base
        prefix = self.states(tokens[: slot - self.late] or tokens[:1])[-1]
        inner = nn.functional.silu(self.w["embed_proj.0.weight"] @ torch.cat((row, prefix)))
        return base + self.w["embed_proj.2.weight"] @ inner, base

    def hidden(self, sample, anchor: int) -> torch.Tensor:
        token = int(sample.prompt.ids[anchor])
        return reference.block_hidden(self.w, self.config, self.embedding, sample.context.double(), anchor, token)

    def loss(self, base_weight: float) -> tuple[torch.Tensor, float, int]:
        """Weighted sum over all blocks, sum of the weights (D-PACE), right drafts."""
        total, weight_sum, right = 0.0, 0.0, 0
        for sample in SAMPLES:
            ids, mask = sample.prompt.ids.tolist(), sample.prompt.loss_mask.tolist()
            for anchor in reference.candidates(mask):
                hidden, losses, chances = self.hidden(sample, anchor), [], []
                for slot in range(1, B):
                    if anchor + slot >= len(ids) or not mask[anchor + slot]:
                        break
                    label = ids[anchor + slot]
                    laws = [x.log_softmax(0)[label] for x in self.logits(hidden, slot, ids[anchor : anchor + slot])]
                    losses.append(-(1 - base_weight) * laws[0] - base_weight * laws[1])
                    chances.append(float(laws[0].exp()))
                    right += int(self.logits(hidden, slot, ids[anchor : anchor + slot])[0].argmax()) == label
                weights = reference.slot_weights(chances, None)
                total = total + sum(w * x for w, x in zip(weights, losses, strict=True))
                weight_sum += sum(weights)
        return total, weight_sum, right


def test_loss_gradients_and_metrics_are_those_of_the_definition(method, model):
    """At a fifth of the training: 0.6 of the loss is the backbone's alone."""
    definition, found = Definition(method, model), method.loss(model, pack(SAMPLES, epoch=0), seed=0, progress=0.2)
    expected, *counts = definition.loss(0.6)
    check_head(model, found, (expected, *counts), definition.w)
    with torch.no_grad():
        for planted in (Definition(method, model, late=1).loss(0.6), definition.loss(0.0)):  # a GRU that lags a token, another share
            assert abs(float(planted[0] - expected)) > 3e-4 * float(expected)  # thirty times the tolerance


@torch.no_grad()
def test_greedy_proposals_are_the_definitions_chain(method, model, monkeypatch):
    definition, sample = Definition(method, model), SAMPLES[1]
    anchors, expected = torch.arange(3, 14), []
    for anchor in anchors.tolist():
        hidden, tokens = definition.hidden(sample, anchor), [int(sample.prompt.ids[anchor])]
        for slot in range(1, B):
            tokens.append(int(definition.logits(hidden, slot, tokens)[0].argmax()))
        expected.append(tokens[1:])
    assert method.propose(model, sample, anchors).tolist() == expected
    keeps = walk.DominoWalk.factor
    monkeypatch.setattr(walk.DominoWalk, "factor", lambda self, before: keeps(self, before).roll(1, -1))  # planted: channels off by one
    assert method.propose(model, sample, anchors).tolist() != expected


def test_the_backbones_share_falls_from_one_to_nothing_and_is_then_not_computed(method, model):
    assert [method.base_weight(x) for x in (0.0, 0.25, 0.5, 0.75)] == [1.0, 0.5, 0.0, 0.0]
    model.zero_grad()
    method.loss(model, pack(SAMPLES, epoch=0), seed=0, progress=0.0)[0].backward()
    assert float(model.embed_proj[2].weight.grad.abs().max()) == 0.0 < float(model.fc.weight.grad.abs().max())


@torch.no_grad()
def test_a_fresh_head_changes_nothing(method):
    fresh = method.build(torch.Generator().manual_seed(0))
    assert float(fresh.embed_proj[2].weight.abs().max()) == 0.0 < float(fresh.prefix_gru.weight_hh_l0.std())
    plain = make_domino(method.target, shift_label=method.config.dflash_config["shift_label"], pure_draft_prefix_len=2)
    anchors = torch.arange(3, 14)  # a head that begins later
    assert torch.equal(method.propose(fresh, SAMPLES[1], anchors), plain.propose(fresh, SAMPLES[1], anchors))


def test_its_folder_is_what_sglang_reads(method, model, tmp_path):
    """Keys and tensors written out; both layouts have B rows and B - 1 drafts."""
    config, said = serving_config(method.config, "float32"), method.config.dflash_config
    assert config["architectures"] == ["DFlashDraftModel"] and method_of(config) == "domino" and method.block_size == B
    assert {key: value for key, value in said.items() if key not in ("block_size", "mask_token_id", "target_layer_ids")} == {
        "projector_type": "domino", "emb_dim": 12, "gru_hidden_dim": 10,
        "pure_draft_prefix_len": said["pure_draft_prefix_len"], "shift_label": said["shift_label"],
    }  # fmt: skip
    weights = serving_tensors(model.state_dict(), "float32")
    assert {name: tuple(value.shape) for name, value in weights.items()} == DFLASH_SHAPES | HEAD
    check_export(write(tmp_path / "draft", config, weights), weights)
    pair = paired(tmp_path / "draft", method.target.folder)
    anchors = torch.arange(3, 14)
    assert torch.equal(pair.method.propose(pair.model, SAMPLES[1], anchors), method.propose(model, SAMPLES[1], anchors))
    with pytest.raises(UserError, match="cannot be served with vllm: vLLM has no Domino"):
        check_served("vllm", method)
    if method.pure == 1:
        check_served("sglang", method)
    else:
        with pytest.raises(UserError, match="SGLang refuses pure_draft_prefix_len=0, it serves 1; no engine serves it"):
            check_served("sglang", method)


SPECFORGE = {**ZLAB, "architectures": ["DominoDraftModel"], "auto_map": {"AutoModel": "domino.DominoDraftModel"}, "emb_dim": 12}
ITS_KEYS = {"projector_type": "domino", "pure_draft_prefix_len": 1, "emb_dim": 12, "gru_hidden_dim": 10, "shift_label": True}


@pytest.mark.parametrize("architecture", ["DominoDraftModel", "DFlashDraftModel"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_folder_of_specforge_is_read(tmp_path, tiny_target, architecture, legacy):
    weights = tensors(DFLASH_SHAPES | HEAD)
    theirs = {f"logit_head.{name}" if legacy and name in HEAD else name: value for name, value in weights.items()}
    values = {**SPECFORGE, "architectures": [architecture], "dflash_config": {**ZLAB["dflash_config"], **ITS_KEYS}}
    pair = paired(write(tmp_path, values, theirs), tiny_target.folder)
    assert isinstance(pair.method, Domino) and (pair.method.pure, pair.method.proposing, pair.method.block_size) == (1, slice(None, -1), B)
    assert all(torch.equal(value, weights[name]) for name, value in pair.model.state_dict().items())
    shorter = paired(tmp_path, tiny_target.folder, 2).method
    assert (shorter.rows, shorter.drafts) == (3, 2)


def test_what_is_left_out_is_specforges_default_and_what_cannot_be_computed_is_refused(tmp_path, tiny_target):
    def load(**nested):
        values = {**SPECFORGE, "dflash_config": {**ZLAB["dflash_config"], "gru_hidden_dim": 10, **nested}}
        return paired(write(tmp_path, values, tensors(DFLASH_SHAPES | HEAD)), tiny_target.folder).method

    assert (load().pure, load().proposing) == (0, slice(1, None))
    with pytest.raises(UserError, match="asks for a Domino head with sample_from_anchor"):
        load(sample_from_anchor=True)
    with pytest.raises(UserError, match="lacks gru_hidden_dim"):
        load(gru_hidden_dim=None)


def test_a_run_starts_from_a_plain_dflash_draft_and_says_that_its_head_is_new(tmp_path, tiny_target):
    same = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6}
    folder, method = write(tmp_path, {**ZLAB, **same}, tensors(DFLASH_SHAPES)), make_domino(tiny_target)
    found = fit(read_source(folder, tiny_target), method, method.build(torch.Generator().manual_seed(0)))
    assert found.taken.keys() == DFLASH_SHAPES.keys() and set(found.fresh) == HEAD.keys() and found.share == 1.0
    assert "starts at random: " in found.lines()[-1]
    back, values = make_method(tiny_target), {**ZLAB, **same, "dflash_config": {**ZLAB["dflash_config"], **ITS_KEYS}}
    with_head = write(tmp_path / "domino", values, tensors(DFLASH_SHAPES | HEAD))
    found = fit(read_source(with_head, tiny_target), back, back.build(torch.Generator().manual_seed(0)))
    assert found.taken.keys() == DFLASH_SHAPES.keys() and found.left == dict.fromkeys(HEAD, "this run's draft has none")


def test_a_head_without_any_proposal_is_refused():
    with pytest.raises(ValueError, match="pure_draft_prefix_len=3 leaves the head none of the 3 proposals of a block; set it below 3"):
        RunConfig(
            output_dir="o", model={"target_model_path": "t"}, dataset={"train_data_path": "d"},
            draft={"method": "domino", "block_size": B, "pure_draft_prefix_len": 3},
        )  # fmt: skip
