"""Folders of speculators, with the keys and tensor names that its package writes (tests/interop reads some that it did write)."""

import pytest
import torch

from tests.unit.importers.foreign import (
    DFLASH_SHAPES,
    EAGLE3,
    EAGLE3_SHAPES,
    EPS,
    IDS,
    PER_HEAD,
    SIZES,
    SPECULATORS,
    THETA,
    D,
    H,
    dflash_by_hand,
    eagle3_by_hand,
    paired,
    proposed,
    pruned,
    tensors,
    write,
)  # fmt: skip
from tests.unit.tiny import MASK, VOCABULARY, B
from torchspec.errors import UserError
from torchspec.nn.attention import WHOLE, Sight

LAYERS = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}, "rms_norm_eps": EPS}
DFLASH = {
    **SPECULATORS, "speculators_model_type": "dflash", "architectures": ["DFlashDraftModel"], "auto_map": {"": "config.Config"},
    "aux_hidden_state_layer_ids": [2, 4], "block_size": B, "draft_vocab_size": VOCABULARY, "mask_token_id": MASK,
    "sample_from_anchor": False, "sliding_window_non_causal": True,
    "transformer_layer_config": {
        **LAYERS, "model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "use_sliding_window": False,
    },
}  # fmt: skip
OF_EAGLE3 = {
    **SPECULATORS, "speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"], "draft_vocab_size": len(IDS),
    "eagle_aux_hidden_state_layer_ids": [2, 4], "norm_before_residual": False, "norm_before_fc": False, "fc_norm": False,
    "norm_output": False, "embed_requires_grad": False,
    "transformer_layer_config": {**LAYERS, "model_type": "llama", "num_hidden_layers": 1},
}  # fmt: skip
BY_SPECULATORS = {name.replace("midlayer.", "layers.0."): shape for name, shape in EAGLE3_SHAPES.items()}


@pytest.mark.parametrize("reduced", [False, True])
def test_dflash_proposes_what_the_definition_gives(tmp_path, tiny_folder, tiny_target, reduced, capsys):
    weights, own = tensors(DFLASH_SHAPES), pruned() if reduced else {}
    pair = paired(write(tmp_path, {**DFLASH, "draft_vocab_size": len(IDS) if reduced else VOCABULARY}, weights | own), tiny_folder)
    assert (pair.method.layer_ids, pair.method.block_size, pair.method.mask_token_id) == ((1, 3), B, MASK)
    served, document, text = proposed(pair, 9)
    head, ids = (own["lm_head.weight"], IDS) if reduced else (tiny_target.head, None)
    assert served == document == dflash_by_hand(weights, tiny_target.embedding, head, text, 9, B, ids)
    assert "causal" not in capsys.readouterr().out


@pytest.mark.parametrize("norm_before_residual", [False, True, None])
def test_eagle3_proposes_what_the_definition_gives(tmp_path, tiny_folder, tiny_target, norm_before_residual):
    """Its folders hold the target's embedding. A missing norm_before_residual is true for vLLM, in this format alone."""
    weights, own = tensors(BY_SPECULATORS), pruned()
    values = {key: value for key, value in {**OF_EAGLE3, "norm_before_residual": norm_before_residual}.items() if value is not None}
    pair = paired(write(tmp_path, values, weights | own | {"embed_tokens.weight": tiny_target.embedding}), tiny_folder)
    assert pair.method.layer_ids == (1, 3, 5) and pair.method.block_size == 4  # three tokens of its proposal method
    served, document, text = proposed(pair, 9)
    ours = {name.replace("layers.0.", "midlayer."): value for name, value in weights.items()}
    flag = {"norm_before_residual": norm_before_residual in (True, None)}
    assert served == document == eagle3_by_hand(ours, tiny_target.embedding, own["lm_head.weight"], text, 9, 3, IDS, **flag)


def test_an_eagle3_draft_of_qwen3_layers_brings_norms_of_each_head(tmp_path, tiny_folder):
    shapes = BY_SPECULATORS | {f"layers.0.{name}.weight": (D,) for name in PER_HEAD}
    layers = {**OF_EAGLE3["transformer_layer_config"], "model_type": "qwen3"}
    pair = paired(write(tmp_path, {**OF_EAGLE3, "transformer_layer_config": layers}, tensors(shapes) | pruned()), tiny_folder)
    assert "midlayer.self_attn.q_norm.weight" in pair.model.state_dict()


def test_the_same_draft_in_both_formats_is_one(tmp_path, tiny_folder, tiny_target):
    weights = tensors(EAGLE3_SHAPES) | pruned()
    plain = {**EAGLE3, "draft_vocab_size": len(IDS), "ttt_length": 3}
    wrapped = {name.replace("midlayer.", "layers.0."): value for name, value in weights.items()}
    ours, theirs = (
        paired(write(tmp_path / "a", plain, weights), tiny_folder),
        paired(write(tmp_path / "b", OF_EAGLE3, wrapped), tiny_folder),
    )
    expected, found = ours.model.state_dict(), theirs.model.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    assert proposed(ours, 17)[0] == proposed(theirs, 17)[0]


def test_what_vllm_would_serve_causally_is_said(tmp_path, tiny_folder, capsys):
    paired(write(tmp_path, {**DFLASH, "sliding_window_non_causal": False}, tensors(DFLASH_SHAPES)), tiny_folder)
    assert "makes vLLM serve its full-attention layers causally" in capsys.readouterr().out


SLIDING = {**DFLASH["transformer_layer_config"], "layer_types": ["sliding_attention"] * 2, "use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("layers", "non_causal", "expected", "said"),
    [
        ({}, False, [Sight(8, causal=True)] * 2, False),
        ({}, True, [Sight(8)] * 2, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False, [WHOLE, Sight(8, causal=True)], True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True, [WHOLE, Sight(8)], False),
    ],
)
def test_sliding_layers_are_causal_as_they_were_trained(tmp_path, tiny_folder, layers, non_causal, expected, said, capsys):
    values = {**DFLASH, "transformer_layer_config": {**SLIDING, **layers}, "sliding_window_non_causal": non_causal}
    pair = paired(write(tmp_path, values, tensors(DFLASH_SHAPES)), tiny_folder)
    assert list(pair.method.sights) == expected
    assert ("makes vLLM serve its full-attention layers causally" in capsys.readouterr().out) == said
    served, document, _ = proposed(pair, 17)
    assert served == document


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**DFLASH, "sample_from_anchor": True}, "a proposal from the anchor's own slot"),
        ({**DFLASH, "aux_hidden_state_layer_ids": [2, 6]}, r"target_layer_ids=\[1, 5\]"),
        ({**DFLASH, "mask_token_id": None}, "mask_token_id=None"),
        ({**DFLASH, "block_size": None}, "lacks block_size or aux_hidden_state_layer_ids"),
        ({**DFLASH, "speculators_model_type": "peagle", "mask_token_id": None}, "names none of mask_token_id, pard_token, ptd_token_id"),
        ({**DFLASH, "speculators_model_type": "mtp"}, "'mtp'"),
    ],
)
def test_what_is_not_computed_here_is_refused_in_one_sentence(tmp_path, tiny_folder, values, words):
    with pytest.raises(UserError, match=words):
        paired(write(tmp_path, values, tensors(DFLASH_SHAPES)), tiny_folder)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"architectures": ["MedusaModel"], "medusa_num_heads": 3}, "MedusaModel"),
        ({"architectures": ["Gemma4DSparkModel"], "model_type": "gemma4"}, "Gemma4DSparkModel"),
        ({"architectures": ["DeepSeekMTPModel"]}, "DeepSeekMTPModel"),
        ({"architectures": ["EagleLlamaForCausalLM"]}, "EagleLlamaForCausalLM"),
        ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, "Eagle3DeepseekV2ForCausalLM"),
        ({"architectures": None, "model_type": "medusa"}, "medusa"),
        ({}, "draft without architectures"),
    ],
)
def test_other_methods_are_refused_by_name_with_what_is_supported(tmp_path, tiny_folder, values, name):
    with pytest.raises(UserError, match=f"is a {name}; supported are DFlashDraftModel, .*LlamaForCausalLMEagle3, .* speculators"):
        paired(write(tmp_path, values, {"x": torch.ones(H)}), tiny_folder)
