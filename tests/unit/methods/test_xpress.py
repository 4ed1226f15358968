"""XPress against its definition in float64, one block, one row and one channel's sum at a time.

That training is serving, and offline tau decoding's, is tested for all methods (cases.py).
"""

import pytest
import torch
from torch import nn

from tests.unit.importers.foreign import DFLASH_SHAPES, SIZES, SPECULATORS, ZLAB, paired, tensors, write
from tests.unit.methods import reference
from tests.unit.methods.cases import lively_draft
from tests.unit.methods.definition import check_head, double
from tests.unit.tiny import MASK, B, make_xpress, random_features
from torchspec.errors import UserError
from torchspec.export.hf import check_export, serving_config, serving_tensors
from torchspec.methods.base import check_served
from torchspec.methods.registry import method_of
from torchspec.methods.xpress.method import XPress
from torchspec.methods.xpress.model import CausalMix
from torchspec.training.stream import pack
from torchspec.training.warm import fit, read_source

SAMPLES = [random_features(mask, i) for i, mask in enumerate(["000011111110", "0011110001111111"])]
ANCHORS = torch.arange(3, 14)
HEAD = {
    "w1.weight": (64, 6), "down_h.weight": (6, 32), "down_g.weight": (6, 32), "in_proj.weight": (6, 18), "mix.L": (6, B, B),
    "mlp.gate_proj.weight": (10, 6), "mlp.up_proj.weight": (10, 6), "mlp.down_proj.weight": (6, 10), "w2.weight": (64, 6),
}  # fmt: skip
SHAPES = DFLASH_SHAPES | {f"xpress_head.{name}": shape for name, shape in HEAD.items()}


@pytest.fixture(scope="module")
def method(tiny_target) -> XPress:
    return make_xpress(tiny_target, loss={"ce": 1.0}, consistency_rounds=2)


@pytest.fixture(scope="module")
def model(method):
    return mixed(lively_draft(method))


def mixed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.xpress_head.mix.L.copy_(torch.randn(model.xpress_head.mix.L.shape, generator=torch.Generator().manual_seed(5)))
    return model


class Definition:
    def __init__(self, method: XPress, model: nn.Module):
        self.method, self.passes, self.shortlist = method, method.config.dflash_config["xpress_num_passes"], None
        self.w = double(model)
        self.head = {name.removeprefix("xpress_head."): value for name, value in self.w.items()}
        self.embedding, self.lm_head = method.target.embedding.double(), method.target.head.double()

    def rows(self, sample, anchor: int) -> torch.Tensor:
        token = int(sample.prompt.ids[anchor])
        return reference.block_hidden(self.w, self.method.config, self.embedding, sample.context.double(), anchor, token)

    def logits(self, rows: torch.Tensor, block: list[int]) -> torch.Tensor:
        """Of slots 1 .. B-1 after the block's tokens [anchor, x_1 ..]; the anchor stands before itself."""
        w, mean, fused = self.head, rows.mean(0), []
        for k in range(B):
            before = block[max(0, k - 1)]
            joined = torch.cat((w["down_h.weight"] @ rows[k], w["down_g.weight"] @ mean, w["w1.weight"][before]))
            fused.append(w["in_proj.weight"] @ joined)
        out = []
        for k in range(1, B):
            x = fused[k] + sum(w["mix.L"][:, k, j] * fused[j] for j in range(k + 1))
            inner = nn.functional.silu(w["mlp.gate_proj.weight"] @ x) * (w["mlp.up_proj.weight"] @ x)
            out.append(self.base(rows)[k - 1] + w["w2.weight"] @ (x + w["mlp.down_proj.weight"] @ inner))
        return torch.stack(out)

    def base(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[1:] @ self.lm_head.T

    def proposals(self, rows: torch.Tensor, anchor: int) -> list[int]:
        block, allowed = [anchor, *self.base(rows).argmax(-1).tolist()], torch.zeros_like(self.base(rows))
        if self.shortlist is not None:
            allowed = torch.full_like(allowed, -torch.inf).scatter(1, self.base(rows).topk(self.shortlist).indices, 0.0)
        for _ in range(self.passes):
            block = [anchor, *(self.logits(rows, block) + allowed).argmax(-1).tolist()]
        return block[1:]

    def loss(self, weights: tuple[float, float], rounds: int) -> tuple[torch.Tensor, float, int]:
        """weights: of the own rounds, of the backbone -> weighted sum over all blocks, sum of the weights (D-PACE), right drafts."""
        total, weight_sum, right = 0.0, 0.0, 0
        for sample in SAMPLES:
            ids, mask = sample.prompt.ids.tolist(), sample.prompt.loss_mask.tolist()
            for anchor in reference.candidates(mask):
                rows, count = self.rows(sample, anchor), 0
                while count < B - 1 and anchor + count + 1 < len(ids) and mask[anchor + count + 1]:
                    count += 1
                labels = ids[anchor + 1 : anchor + 1 + count]
                text = ids[anchor : anchor + 1 + count] + [0] * (B - 1 - count)
                laws, said = [self.logits(rows, text), self.base(rows)], self.base(rows).argmax(-1).tolist()
                for _ in range(rounds):
                    laws.append(self.logits(rows, [ids[anchor], *said]))
                    said = laws[-1].argmax(-1).tolist()
                each = [-law.log_softmax(-1)[range(count), labels] for law in laws]
                chances = (-each[0]).exp().tolist()
                right += int((laws[0][:count].argmax(-1) == torch.tensor(labels)).sum())
                slots = torch.tensor(reference.slot_weights(chances, None), dtype=torch.float64)
                total = total + (slots * (each[0] + weights[1] * each[1] + weights[0] / rounds * sum(each[2:]))).sum()
                weight_sum += float(slots.sum())
        return total, weight_sum, right


def test_loss_gradients_and_metrics_are_those_of_the_definition(method, model):
    definition, found = Definition(method, model), method.loss(model, pack(SAMPLES, epoch=0), seed=0)
    expected, *counts = definition.loss((0.3, 0.6), 2)
    check_head(model, found, (expected, *counts), definition.w)
    with torch.no_grad():  # planted: one round less, ten times the tolerance away
        assert abs(float(definition.loss((0.3, 0.6), 1)[0] - expected)) > 1e-4 * float(expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [{"xpress_num_passes": 1}, {"xpress_num_passes": 2}, {"xpress_num_passes": 9}, {"xpress_topc": 4}], ids=str
)
def test_proposals_are_those_of_the_definitions_passes(tiny_target, settings, monkeypatch):
    method = make_xpress(tiny_target, loss={"ce": 1.0}, **settings)
    model = mixed(lively_draft(method))
    definition = Definition(method, model)
    definition.shortlist = settings.get("xpress_topc")
    ids, expected = SAMPLES[1].prompt.ids, []
    for anchor in ANCHORS.tolist():
        expected.append(definition.proposals(definition.rows(SAMPLES[1], anchor), int(ids[anchor])))
    assert method.propose(model, SAMPLES[1], ANCHORS).tolist() == expected
    monkeypatch.setattr("torchspec.methods.xpress.walk.PASS_ELEMENTS", 400)  # two blocks at a time
    assert method.propose(model, SAMPLES[1], ANCHORS).tolist() == expected
    monkeypatch.setattr(CausalMix, "forward", lambda self, x: x + torch.einsum("rkj,njr->nkr", self.L, x))  # planted: rows look ahead
    assert method.propose(model, SAMPLES[1], ANCHORS).tolist() != expected


@torch.no_grad()
def test_a_settled_slot_is_disturbed_by_nothing_behind_it_and_enough_passes_are_one_slot_after_another(method, model):
    """B - 1 passes give what feeding each proposal to the next slot gives; the text that is walked along is fed to none."""
    many = make_xpress(method.target, loss={"ce": 1.0}, xpress_num_passes=B - 1)
    definition, ids = Definition(many, model), SAMPLES[1].prompt.ids
    for anchor, found in zip(ANCHORS.tolist(), many.propose(model, SAMPLES[1], ANCHORS).tolist(), strict=True):
        rows, block = definition.rows(SAMPLES[1], anchor), [int(ids[anchor])]
        for slot in range(1, B):
            block.append(int(definition.logits(rows, block + [0] * (B - slot))[slot - 1].argmax()))
        assert found == block[1:]


@torch.no_grad()
def test_a_fresh_head_changes_nothing(method):
    fresh = method.build(torch.Generator().manual_seed(0))
    assert float(fresh.xpress_head.w2.weight.abs().max()) == float(fresh.xpress_head.mix.L.abs().max()) == 0.0
    blocks, _ = next(method._blocks(fresh, SAMPLES[1], ANCHORS))
    base = (blocks.states @ method.target.head.T).argmax(-1)
    assert torch.equal(method.propose(fresh, SAMPLES[1], ANCHORS), base)


KEYS = {"xpress_rank": 6, "xpress_mlp_hidden": 10, "xpress_num_passes": 2, "xpress_topc": 0}


def test_its_folder_is_what_vllm_reads(method, model, tmp_path):
    config = serving_config(method.config, "float32")
    assert config["architectures"] == ["Qwen3XPressModel"] and method_of(config) == "xpress"
    top = {**KEYS, "xpress_block_size": B, "sample_from_anchor": False}
    assert {key: config[key] for key in top} == top and {key: config["dflash_config"][key] for key in KEYS} == KEYS
    weights = serving_tensors(model.state_dict(), "float32")
    assert {name: tuple(value.shape) for name, value in weights.items()} == SHAPES
    check_export(write(tmp_path / "draft", config, weights), weights)
    pair = paired(tmp_path / "draft", method.target.folder)
    assert torch.equal(pair.method.propose(pair.model, SAMPLES[1], ANCHORS), method.propose(model, SAMPLES[1], ANCHORS))
    shorter = paired(tmp_path / "draft", method.target.folder, 2)
    assert torch.equal(shorter.model.xpress_head.mix.L, model.xpress_head.mix.L[:, :3, :3])
    check_served("vllm", method)
    with pytest.raises(UserError, match="SGLang has no XPress; serve it with vllm"):
        check_served("sglang", method)


def test_what_a_folder_leaves_out_is_vllms_default_and_what_cannot_be_computed_is_refused(tmp_path, tiny_target):
    def load(**values):
        values = {**ZLAB, "architectures": ["Qwen3XPressModel"], "xpress_rank": 6, "xpress_mlp_hidden": 10, **values}
        return paired(write(tmp_path, values, tensors(SHAPES)), tiny_target.folder).method

    assert {**KEYS, "xpress_num_passes": 6, "xpress_topc": 512}.items() <= load().config.dflash_config.items()
    with pytest.raises(UserError, match="asks for 0 passes of XPress"):
        load(xpress_num_passes=0)
    with pytest.raises(UserError, match="asks for a proposal from the anchor's own slot"):
        load(sample_from_anchor=True)


THEIRS = {
    "w1.weight": "token_embed.weight", "mix.L": "mix_l", "mlp.gate_proj.weight": "mlp_gate.weight", "mlp.up_proj.weight": "mlp_up.weight",
    "mlp.down_proj.weight": "mlp_down.weight", "w2.weight": "readout.weight",
}  # fmt: skip
OF_SPECULATORS = {
    **SPECULATORS, "speculators_model_type": "xpress", "aux_hidden_state_layer_ids": [2, 4], "block_size": B, "mask_token_id": MASK,
    "xpress_rank": 6, "xpress_mlp_ratio": 2, "num_jacobi_passes": 4, "draft_vocab_size": 64, "sliding_window_non_causal": True,
    "transformer_layer_config": {**SIZES, "model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2,
                                 "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rms_norm_eps": 1e-6},
}  # fmt: skip


def test_a_folder_of_speculators_is_read_and_gone_on_with(tmp_path, tiny_target):
    wide = {name: (12, *shape[1:]) if "head.mlp.gate" in name or "head.mlp.up" in name else shape for name, shape in SHAPES.items()}
    weights = tensors(wide | {"xpress_head.mlp.down_proj.weight": (6, 12)})
    theirs = {}
    for name, value in weights.items():
        short = name.removeprefix("xpress_head.")
        theirs[f"refiner_head.{THEIRS.get(short, short)}" if short != name else name] = value
    folder = write(tmp_path, OF_SPECULATORS, theirs)
    pair = paired(folder, tiny_target.folder)
    assert {"xpress_mlp_hidden": 12, "xpress_num_passes": 4, "xpress_topc": 0}.items() <= pair.method.config.dflash_config.items()
    assert all(torch.equal(value, weights[name]) for name, value in pair.model.state_dict().items())
    method = make_xpress(tiny_target, xpress_mlp_hidden=12, xpress_num_passes=4)
    found = fit(read_source(folder, tiny_target), method, method.build(torch.Generator().manual_seed(0)))
    assert found.taken.keys() == SHAPES.keys() and found.fresh == [] and found.share == 1.0
