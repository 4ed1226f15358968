"""What of another draft is taken. Oracle: the very tensors that were written as another project writes them, and names counted by hand."""

import pytest
import torch

from tests.unit.importers.foreign import (
    DFLASH_SHAPES,
    EAGLE3,
    EAGLE3_SHAPES,
    IDS,
    PER_HEAD,
    SIZES,
    SPECULATORS,
    ZLAB,
    D,
    H,
    K,
    pruned,
    tensors,
    write,
)  # fmt: skip
from tests.unit.tiny import MASK, VOCABULARY, make_eagle3, make_method
from torchspec.errors import UserError
from torchspec.training.warm import fit, read_source

ROPE = {"rope_type": "default", "rope_theta": 10000.0}  # the tiny target's, and its epsilon
SAME = {"rope_theta": ROPE["rope_theta"], "rms_norm_eps": 1e-6}
LAYERS = {**SIZES, "rope_parameters": ROPE, "rms_norm_eps": SAME["rms_norm_eps"]}
OF_DFLASH = {
    **SPECULATORS, "speculators_model_type": "dflash", "aux_hidden_state_layer_ids": [2, 4], "block_size": 8, "mask_token_id": MASK,
    "transformer_layer_config": {**LAYERS, "model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
}  # fmt: skip
OF_EAGLE3 = {
    **SPECULATORS, "speculators_model_type": "eagle3", "draft_vocab_size": VOCABULARY, "norm_before_residual": False,
    "eagle_aux_hidden_state_layer_ids": [2, 4], "transformer_layer_config": {**LAYERS, "model_type": "llama", "num_hidden_layers": 1},
}  # fmt: skip
FORMATS = {  # name: method, config.json, their names -> ours, files
    "z-lab": (make_method, {**ZLAB, **SAME}, "model.", "single"),
    "z-lab, pickled": (make_method, {**ZLAB, **SAME}, "model.", "pickle"),
    "DFlash of speculators": (make_method, OF_DFLASH, "", "sharded"),
    "EAGLE-3": (make_eagle3, {**EAGLE3, **SAME}, "", "pickle"),
    "EAGLE-3 of speculators": (make_eagle3, OF_EAGLE3, "layers.0.", "single"),
}


def fitted(folder, method):
    return fit(read_source(folder, method.target), method, method.build(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_draft_of_another_project_that_fits_is_taken_whole(tmp_path, tiny_target, name, capsys):
    make, config, prefix, files = FORMATS[name]
    weights = tensors(DFLASH_SHAPES if make is make_method else EAGLE3_SHAPES)
    theirs = {prefix + n if prefix == "model." else n.replace("midlayer.", prefix or "midlayer."): value for n, value in weights.items()}
    found = fitted(write(tmp_path, config, theirs, files), make(tiny_target))
    assert found.taken.keys() == weights.keys() and all(torch.equal(found.taken[n], weights[n]) for n in weights)
    assert (found.left, found.fresh, found.differs, found.share, found.lines()) == ({}, [], {}, 1.0, [])
    assert capsys.readouterr().out == ""  # how a server would draft is no matter of training


def test_features_of_other_layers_leave_fc_out_whatever_its_shape(tmp_path, tiny_target):
    folder = write(tmp_path, {**ZLAB, **SAME}, tensors(DFLASH_SHAPES))
    found = fitted(folder, make_method(tiny_target, target_layer_ids=(0, 2)))
    assert found.left == {"fc.weight": "dflash_config.target_layer_ids: [1, 3] there, [0, 2] in this run"}
    assert found.fresh == ["fc.weight"] and found.taken.keys() == DFLASH_SHAPES.keys() - {"fc.weight"}
    fc = H * K * H
    assert found.share == 1 - fc / sum(torch.Size(shape).numel() for shape in DFLASH_SHAPES.values())
    norms = {"fc_norm.0.weight": (H,), "fc_norm.1.weight": (H,), "input_norm.weight": (K * H,)}
    flags = {"fc_norm": True, "norm_before_fc": True}
    folder = write(tmp_path / "norms", {**EAGLE3, **SAME, **flags}, tensors(EAGLE3_SHAPES | norms))
    found = fitted(folder, make_eagle3(tiny_target, target_layer_ids=(0, 2), **flags))
    assert found.left.keys() == {"fc.weight", *norms} == set(found.fresh)


def test_what_the_draft_brings_of_its_own_and_what_it_computes_otherwise_is_listed(tmp_path, tiny_target):
    own = pruned() | {"embed_tokens.weight": torch.cat((tiny_target.embedding[:-3], torch.ones(3, H)))}
    folder = write(tmp_path, {**EAGLE3, "draft_vocab_size": len(IDS)}, tensors(EAGLE3_SHAPES) | own)
    found = fitted(folder, make_eagle3(tiny_target, ids=IDS[:5], norm_output=True, ttt_length=7))
    assert found.share == 1.0 and found.fresh == []
    assert found.lines() == [
        "not taken: lm_head.weight, d2t, t2d (head and vocabulary come from the target and this run's data)",
        "not taken: embed_tokens.weight (its own in 3 of 64 rows; this run's draft reads the target's)",
        "computed otherwise: rms_norm_eps: 1e-05 there, 1e-06 in this run",
        "computed otherwise: rope_parameters.rope_theta: 20000.0 there, 10000.0 in this run",
        "computed otherwise: draft_vocab_size: 9 there, 5 in this run",
        "computed otherwise: norm_output: False there, True in this run",
    ]


def test_a_trained_mask_embedding_and_another_mask_token_are_listed(tmp_path, tiny_target):
    nested = {"mask_token_id": MASK - 1, "target_layer_ids": [1, 3]}
    folder = write(tmp_path, {**ZLAB, **SAME, "dflash_config": nested}, tensors(DFLASH_SHAPES))
    torch.save(torch.ones(H), folder / "mask_embedding.pt")
    found = fitted(folder, make_method(tiny_target))
    assert found.differs == {"dflash_config.mask_token_id": "62 there, 63 in this run"}
    assert found.left == {"embed_tokens.weight": "its own in 1 of 64 rows; this run's draft reads the target's"}


def test_layers_are_matched_by_number(tmp_path, tiny_target):
    """The first of two layers is taken; two of three are, where three are trained; two of five are too little."""
    folder = write(tmp_path, {**ZLAB, **SAME}, tensors(DFLASH_SHAPES))
    second = {name for name in DFLASH_SHAPES if name.startswith("layers.1.")}
    found = fitted(folder, make_method(tiny_target, num_layers=1))
    assert found.left == dict.fromkeys(second, "this run's draft has none") and found.fresh == []
    found = fitted(folder, make_method(tiny_target, num_layers=3))
    assert set(found.fresh) == {name.replace("layers.1.", "layers.2.") for name in second} and found.left == {}
    with pytest.raises(
        UserError, match=r"this dflash draft fills \d\d% of the dflash draft that this run trains.*num_hidden_layers: 2 there, 5 "
    ):
        fitted(folder, make_method(tiny_target, num_layers=5, target_layer_ids=(0, 2)))


def test_heads_that_are_cut_otherwise_are_other_heads(tmp_path, tiny_target):
    """Twice as wide and half as many: every matrix of the attention has its old shape."""
    folder = write(
        tmp_path, {**EAGLE3, **SAME, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2 * D}, tensors(EAGLE3_SHAPES)
    )
    found = fitted(folder, make_eagle3(tiny_target))
    attention = {name for name in EAGLE3_SHAPES if ".self_attn." in name}
    assert found.left == dict.fromkeys(attention, "head_dim: 16 there, 8 in this run") and set(found.fresh) == attention


def test_other_shapes_and_other_norms_are_left(tmp_path, tiny_target):
    shapes = {**EAGLE3_SHAPES, **{f"midlayer.{name}.weight": (D,) for name in PER_HEAD}, "midlayer.self_attn.k_proj.weight": (4 * D, 2 * H)}
    shapes["midlayer.self_attn.v_proj.weight"] = (4 * D, 2 * H)
    qwen3 = {"architectures": ["Eagle3Qwen3ForCausalLM"], "num_key_value_heads": 4, "head_dim": D}
    found = fitted(write(tmp_path, {**EAGLE3, **SAME, **qwen3}, tensors(shapes)), make_eagle3(tiny_target))
    wide = [f"midlayer.self_attn.{name}_proj.weight" for name in "kv"]
    assert {name for name, reason in found.left.items() if reason == "this run's draft has none"} == shapes.keys() - EAGLE3_SHAPES.keys()
    assert [name for name, reason in found.left.items() if reason == "shape (32, 64) there, (16, 64) in this run"] == wide == found.fresh


@pytest.mark.parametrize(
    ("changes", "left_out", "words"),
    [
        ({"vocab_size": 65}, (), "made for a target with vocabulary 65, width 32 and 6 layers"),
        ({"num_target_layers": 7}, (), "and 7 layers"),
        ({"hidden_act": "gelu"}, (), "a hidden_act other than silu, which is not computed here"),
        ({"architectures": ["MedusaModel"]}, (), "is a MedusaModel; supported are"),
        ({}, ("layers.0.", "layers.1."), r"fills 10% .*\(no layers.0.input_layernorm.weight; no layers.0"),
    ],
)
def test_what_is_no_beginning_is_refused_in_one_sentence(tmp_path, tiny_target, changes, left_out, words):
    weights = {name: value for name, value in tensors(DFLASH_SHAPES).items() if not name.startswith(left_out or "-")}
    with pytest.raises(UserError, match=words) as refusal:
        fitted(write(tmp_path, {**ZLAB, **SAME, **changes}, weights), make_method(tiny_target))
    assert "\n" not in str(refusal.value)


def test_a_draft_of_another_method_must_share_most_of_its_names(tmp_path, tiny_target):
    with pytest.raises(UserError, match=r"this dflash draft fills \d% of the eagle3 draft that this run trains"):
        fitted(write(tmp_path, {**ZLAB, **SAME}, tensors(DFLASH_SHAPES)), make_eagle3(tiny_target))
