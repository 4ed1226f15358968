"""The folder of a LiLiCorr draft: config and tensors in the words of its readers, shorter blocks, other heads, faults that are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests.unit.importers.foreign import paired
from tests.unit.methods.test_eagle3_format import export
from tests.unit.methods.test_lilicorr_definition import random_blocks
from tests.unit.tiny import HIDDEN, LAYERS, MASK, VOCABULARY, B, answered, lively, make_lilicorr, make_method, random_prompt
from torchspec.errors import UserError
from torchspec.methods.lilicorr.config import LiLiCorrConfig
from torchspec.training.warm import fit, read_source

# the list of the serving format under `lilicorr.`, written out for H = 32, h = 24, f = 10, K = 4, B = 4, 3 heads and 2 layers
HEAD = {
    "token_proj.weight": (24, 32), "token_proj.bias": (24,), "pass_hidden_proj.weight": (24, 32), "pass_hidden_proj.bias": (24,),
    "context_proj.weight": (24, 32), "context_proj.bias": (24,), "feature_norm.weight": (5,), "feature_norm.bias": (5,),
    "feature_mlp.up_proj.weight": (24, 5), "feature_mlp.up_proj.bias": (24,), "feature_mlp.down_proj.weight": (24, 24),
    "feature_mlp.down_proj.bias": (24,), "slot_embedding": (1, 1, 3, 1, 24), "rank_embedding": (1, 1, 1, 4, 24),
    "relative_slot_bias": (3, 7), "same_slot_bias": (3,), "output_norm.weight": (24,), "anchor_norm.weight": (24,),
    "factor_input_proj.weight": (24, 72), "factor_input_proj.bias": (24,), "out_head.weight": (10, 24), "out_head.bias": (10,),
    "in_head.weight": (10, 24), "in_head.bias": (10,), "anchor_out_head.weight": (10, 24), "anchor_out_head.bias": (10,),
} | {
    f"layers.{i}.{name}": shape for i in range(2) for name, shape in {
        "attn_norm.weight": (24,), "attn.in_proj_weight": (72, 24), "attn.in_proj_bias": (72,), "attn.out_proj.weight": (24, 24),
        "attn.out_proj.bias": (24,), "mlp_norm.weight": (24,), "mlp.up_proj.weight": (48, 24), "mlp.up_proj.bias": (48,),
        "mlp.down_proj.weight": (24, 48), "mlp.down_proj.bias": (24,),
    }.items()
}  # fmt: skip


@pytest.fixture(scope="module")
def method(tiny_target):
    return make_lilicorr(tiny_target)


@pytest.fixture(scope="module")
def folder(method, tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("lilicorr"), method, "float32")


def changed(folder: Path, to: Path, nested: dict, tensors: dict | None = None, **top) -> Path:
    """The folder with other settings, absent where None, and more tensors."""
    to.mkdir()
    config = json.loads((folder / "config.json").read_text()) | top
    config["dflash_config"] = {key: value for key, value in {**config["dflash_config"], **nested}.items() if value is not None}
    (to / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors") | (tensors or {}), to / "model.safetensors")
    return to


def test_the_folder_holds_the_formats_keys_and_tensors(folder):
    config, written = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == ["LiLiCorrDraftModel"]
    assert config["dflash_config"] == {
        "block_size": B, "mask_token_id": MASK, "target_layer_ids": list(LAYERS), "lilicorr_candidate_topk": 4, "lilicorr_hidden_size": 24,
        "lilicorr_num_layers": 2, "lilicorr_num_heads": 3, "lilicorr_mlp_ratio": 2.0, "lilicorr_factor_dim": 10,
        "lilicorr_vector_eps": 1e-4, "lilicorr_logit_scale": 8.0,
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in written.items() if name.startswith("lilicorr.")} == {
        f"lilicorr.{name}": shape for name, shape in HEAD.items()
    }
    assert {name for name in written if not name.startswith("lilicorr.")} == set(make_method_names())


def make_method_names() -> list[str]:
    layer = ("input_layernorm", "post_attention_layernorm", *(f"self_attn.{x}" for x in ("q_norm", "k_norm")))
    layer += tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
    return ["fc.weight", "hidden_norm.weight", "norm.weight", *(f"layers.{i}.{name}.weight" for i in range(2) for name in layer)]


def test_a_fresh_head_starts_as_published(method):
    """Zero biases and embeddings, norms of one, no matrix of zeros; the backbone is DFlash's with the same seed."""
    fresh = method.build(torch.Generator().manual_seed(3))
    for name, weight in fresh.lilicorr.named_parameters():
        zeros = name.endswith("bias") or name in ("slot_embedding", "rank_embedding")
        assert (weight == 0).all() if zeros else (weight == 1).all() if "norm" in name else (0.01 < weight.std() < 0.03), name
    plain = make_method(method.target).build(torch.Generator().manual_seed(3)).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in fresh.state_dict().items() if not name.startswith("lilicorr."))


@torch.no_grad()
def test_a_loaded_draft_proposes_what_the_trained_one_does(method, folder, tiny_folder, eagle3_oracle):
    pair = paired(folder, tiny_folder)
    assert (pair.method.layer_ids, pair.method.block_size) == (LAYERS, B)  # learning from the target's law is over
    features = pair.target.capture(answered(eagle3_oracle, random_prompt(0, 9), 20))
    seen = eagle3_oracle.capture(features.prompt)
    anchors, trained = torch.arange(1, 28), lively(method.build(torch.Generator()))
    assert torch.equal(pair.method.propose(pair.model, features, anchors), method.propose(trained, seen, anchors))


@torch.no_grad()
@pytest.mark.parametrize("drafts", [1, 2])
def test_a_shorter_block_has_the_first_slots_and_their_distances(method, folder, tiny_folder, drafts):
    """As servers score a shorter draft: its slots are the trained ones' first, a distance keeps its bias."""
    pair, trained, blocks = paired(folder, tiny_folder, drafts), lively(method.build(torch.Generator())), random_blocks()
    of_head = pair.model.lilicorr
    assert torch.equal(of_head.slot_embedding, trained.lilicorr.slot_embedding[:, :, :drafts])
    assert torch.equal(of_head._bias(drafts, 4), trained.lilicorr._bias(B - 1, 4)[:, : 4 * drafts, : 4 * drafts])
    assert of_head._bias(drafts, 4).unique().numel() > drafts and pair.method.drafter(pair.model).block_size == drafts + 1
    assert pair.method.walk(pair.model, replace_states(blocks, drafts), pair.method.whole_vocabulary).scores.shape == (2, drafts, 4, 4)


def replace_states(blocks, slots: int):
    return replace(blocks, states=blocks.states[:, :slots])


def test_an_own_head_is_used_only_where_the_config_says_so(folder, tiny_folder, tmp_path, capsys):
    own = {"lm_head.weight": torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(4))}
    silent = paired(changed(folder, tmp_path / "silent", {}, own), tiny_folder)
    assert "lm_head.weight" not in silent.model.state_dict()
    said = paired(changed(folder, tmp_path / "said", {}, own, has_own_lm_head=True), tiny_folder)
    assert (
        torch.equal(said.method.served_vocabulary(said.model).head, own["lm_head.weight"]) and "head of its own" in capsys.readouterr().out
    )
    blocks = random_blocks()
    with torch.no_grad():
        best = (blocks.states @ own["lm_head.weight"].T).topk(4).indices
        assert torch.equal(said.method.walk(said.model, blocks, said.method.served_vocabulary(said.model)).states, best)


@pytest.mark.parametrize(
    ("nested", "top", "sentence"),
    [
        ({"lilicorr_logit_scale": None}, {}, "lacks lilicorr_logit_scale"),
        ({"lilicorr_candidate_topk": 12}, {}, "lilicorr_candidate_topk=12"),
        ({"lilicorr_candidate_topk": 32}, {}, "lilicorr_candidate_topk=32"),
        ({"lilicorr_num_heads": 5}, {}, "lilicorr_num_heads=5 does not divide lilicorr_hidden_size=24"),
        ({"lilicorr_enabled": False}, {}, "lilicorr_enabled"),
        ({"conv_kernel_size": 3, "conv_group_size": 8}, {}, "convolutions in its layers"),
        ({"projector_type": "domino"}, {}, "the projector 'domino'"),
        ({}, {"draft_vocab_size": 32}, "reduced vocabulary"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_planted_settings_that_cannot_be_served_are_named(folder, tiny_folder, tmp_path, nested, top, sentence):
    with pytest.raises(UserError, match=sentence):
        paired(changed(folder, tmp_path / "changed", nested, **top), tiny_folder)


def test_options_that_no_server_takes_are_refused(tiny_target):
    with pytest.raises(ValidationError, match="lilicorr_candidate_topk"):
        LiLiCorrConfig(lilicorr_candidate_topk=3)
    with pytest.raises(UserError, match="lilicorr_num_heads=5 does not divide"):
        make_lilicorr(tiny_target, lilicorr_num_heads=5)


def test_a_dflash_draft_starts_the_backbone_and_the_lattice_starts_fresh(method, tiny_target, tmp_path):
    source = read_source(export(tmp_path, make_method(tiny_target), "float32"), tiny_target)
    found = fit(source, method, method.build(torch.Generator().manual_seed(0)))
    assert set(found.taken) == set(make_method_names()) and not found.left
    assert {name.removeprefix("lilicorr.") for name in found.fresh} == set(HEAD)
