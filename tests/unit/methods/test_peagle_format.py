"""The folder of a P-EAGLE draft: config and tensors in the words of vLLM and speculators, read back; faults that are named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.importers.foreign import paired, write
from tests.unit.methods.test_eagle3_format import export, rewrite
from tests.unit.tiny import HIDDEN, MASK, B, answered, lively, make_peagle, random_prompt
from torchspec.config import RunConfig
from torchspec.errors import ContractError, UserError
from torchspec.export.hf import check_export
from torchspec.methods.base import check_served
from torchspec.methods.eagle3.format import AUX
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.methods.peagle.format import draft_config
from torchspec.training.warm import fit, read_source

# the list of the serving format, written out for K = 2, H = 32, 4 heads and 2 kv heads of 8, I = 64, two layers
LAYER = {
    "input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64),
}  # fmt: skip
READS = [{"self_attn.q_proj": (32, width), "self_attn.k_proj": (16, width), "self_attn.v_proj": (16, width)} for width in (64, 32)]
SHAPES = {"fc.weight": (32, 64), "norm.weight": (32,), "mask_hidden": (1, 1, 64), "layers.0.hidden_norm.weight": (32,)}
SHAPES |= {f"layers.{n}.{name}.weight": shape for n in range(2) for name, shape in (LAYER | READS[n]).items()}
IDS = torch.tensor([1, 2, 5, 8, 13, 21, 34, 55, 63])
PRUNED = {"lm_head.weight": (9, 32), "d2t": (9,), "t2d": (64,)}


@pytest.fixture(scope="module")
def folder(tiny_target, tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("peagle"), make_peagle(tiny_target, IDS, fc_norm=True), "float32")


@pytest.fixture
def draft(folder, tmp_path) -> Path:
    """A copy to be changed."""
    return write(tmp_path / "draft", json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))


def test_the_folder_holds_the_formats_tensors(folder):
    written = load_file(folder / "model.safetensors")
    norms = {f"fc_norm.{i}.weight": (32,) for i in range(2)}
    assert {name: tuple(value.shape) for name, value in written.items()} == SHAPES | PRUNED | norms


def test_the_config_is_one_of_speculators_and_repeats_the_layers_where_vllm_looks(folder):
    """vLLM takes `transformer_layer_config`, and puts over it what stands at the top (update_peagle), which knows no fc_norm."""
    config = json.loads((folder / "config.json").read_text())
    at_the_top = {
        "speculators_model_type": "peagle", "mask_token_id": MASK, "draft_vocab_size": 9, AUX: [2, 4], "norm_before_residual": False,
        "norm_before_fc": False, "architectures": ["PeagleLlamaForCausalLM"], "num_depths": B - 1,
    }  # fmt: skip
    inside = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": HIDDEN, "head_dim": 8, "num_aux_hidden_states": 2, "fc_norm": True,
        "rope_theta": 10000.0, "mask_token_id": MASK, "attention_bias": False, "num_target_layers": 6,
    }  # fmt: skip
    assert {key: config[key] for key in at_the_top} == at_the_top
    assert {key: config["transformer_layer_config"][key] for key in inside} == inside
    assert "model_type" not in config  # with one vLLM takes the folder for a plain one, whose name must begin or end with Eagle3
    (proposal,) = config["speculators_config"]["proposal_methods"]
    assert proposal["speculative_tokens"] == B - 1 and "transformer_layer_config" not in config["transformer_layer_config"]


@torch.no_grad()
def test_it_is_read_back_as_it_was_also_as_a_plain_folder_of_eagle3s_name(folder, draft, tiny_folder, tiny_target, eagle3_oracle):
    """As others publish theirs: flat, `layers.0` called `midlayer`, the mask token under a name of their own, mask_hidden flat."""
    method, anchors = make_peagle(tiny_target, IDS, fc_norm=True), torch.arange(1, 28)

    def flat(weights, config):
        inner = config.pop("transformer_layer_config") | {"architectures": ["LlamaForCausalLMEagle3"], "ptd_token_id": MASK}
        config.clear()
        config.update({key: value for key, value in inner.items() if key not in ("mask_token_id", "num_depths")})
        for name in [name for name in weights if name.startswith("layers.0.")]:
            weights[name.replace("layers.0.", "midlayer.")] = weights.pop(name)
        weights["mask_hidden"] = weights["mask_hidden"].flatten()

    rewrite(draft, flat)
    pairs = [paired(folder, tiny_folder), paired(draft, tiny_folder, 3)]
    features = eagle3_oracle.capture(answered(eagle3_oracle, random_prompt(0, 9), 20))
    expected = method.propose(lively(method.build(torch.Generator())), features, anchors)
    for pair in pairs:
        assert (pair.method.layer_ids, pair.method.block_size, pair.method.mask_token_id) == ((1, 3, 5), B, MASK)
        assert torch.equal(pair.method.propose(pair.model, features, anchors), expected)


def test_a_run_begins_with_its_weights(folder, tiny_target):
    method = make_peagle(tiny_target, fc_norm=True)
    fitting = fit(read_source(folder, tiny_target), method, method.build(torch.Generator()))
    assert fitting.share == 1 and fitting.fresh == [] and "mask_hidden" in fitting.taken


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda w, c: c["transformer_layer_config"].update(fc_norm=False), r"differ in \['fc_norm'\]"),
        (lambda w, c: c.update(num_aux_hidden_states=3), "with 3 layers counted for 2"),
        (lambda w, c: c.update({AUX: [2, 6]}), "must ascend and end below"),
        (lambda w, c: c["speculators_config"]["proposal_methods"][0].update(speculative_tokens=7), "would draft 7 tokens of 3 trained"),
        (lambda w, c: w.update(mask_hidden=torch.zeros(1, 1, 32)), "mask_hidden must have the 64 features"),
        (lambda w, c: w["t2d"].logical_not_(), "two maps of its vocabulary disagree"),
    ],
)
def test_planted_an_export_that_vllm_would_read_otherwise_is_refused(draft, plant, words):
    check_export(draft, load_file(draft / "model.safetensors"))
    rewrite(draft, plant)
    with pytest.raises(ContractError, match=words):
        check_export(draft, load_file(draft / "model.safetensors"))


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda w, c: c.update(mask_token_id=64), "mask_token_id=64, which is no token"),
        (lambda w, c: c.update(mask_token_id=None), "names none of mask_token_id, pard_token, ptd_token_id"),
        (lambda w, c: c["transformer_layer_config"].update(mlp_bias=True), "mlp_bias"),
        (lambda w, c: w.pop("mask_hidden"), "missing mask_hidden"),
    ],
)
def test_a_draft_that_does_not_fit_is_not_loaded(draft, tiny_folder, plant, words):
    rewrite(draft, plant)
    with pytest.raises(UserError, match=words):
        paired(draft, tiny_folder)


def test_no_other_engine_serves_it(tiny_target):
    with pytest.raises(UserError, match="cannot be served with sglang: SGLang has no P-EAGLE; serve it with vllm"):
        check_served("sglang", make_peagle(tiny_target))


def test_settings_that_make_no_sense_are_refused(tiny_target):
    run = {"output_dir": "o", "model": {"target_model_path": "t"}, "dataset": {"train_data_path": "d"}}
    for draft, words in (({"sliding_window": 8}, "see the whole text"), ({"num_depths": 1}, "greater than or equal to 2")):
        with pytest.raises(ValueError, match=words):
            RunConfig(**run, draft={"method": "peagle", **draft})
    with pytest.raises(UserError, match="draft.mask_token_id=64 lies outside"):
        draft_config(PeagleConfig(target_layer_ids=(1, 3)), tiny_target, 64)
