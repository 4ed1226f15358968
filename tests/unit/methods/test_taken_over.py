"""The shape of a draft: what the user says, else the target's, else what a draft can use. Oracle: the numbers of public configs and what
their targets' own modules hold, written out.
"""

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from tests.unit.tiny import make_eagle3, make_method
from torchspec.errors import UserError
from torchspec.methods.block.format import draft_config
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.taken_over import taken_over

PLAIN = {"rope_type": "default"}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "factor": 32.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def shaped(kind: str, width: int | None = None, shape: dict | None = None, **values) -> tuple:
    """heads, heads with keys, head size, MLP, epsilon, RoPE, positions."""
    target = CONFIG_MAPPING[kind](**values)
    found = taken_over(DFlashConfig(**(shape or {})), target, width or target.hidden_size)
    keys = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps", "rope_parameters")
    return tuple(found[key] for key in (*keys, "max_position_embeddings"))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        # whatever makes sense is the target's
        ("qwen3", {"num_key_value_heads": 8, "intermediate_size": 12288, "rope_parameters": {**PLAIN, "rope_theta": 1e6}},
         (32, 8, 128, 12288, 1e-6, {**PLAIN, "rope_theta": 1e6}, 32768)),
        ("mixtral", {}, (32, 8, 128, 14336, 1e-5, {**PLAIN, "rope_theta": 1e6}, 131072)),
        ("qwen3_moe", {"head_dim": 128}, (32, 4, 128, 6144, 1e-6, {**PLAIN, "rope_theta": 1e4}, 32768)),
        ("gemma2", {}, (8, 4, 256, 9216, 1e-6, {**PLAIN, "rope_theta": 1e4}, 8192)),
        # MLA
        ("deepseek_v3", {"rope_parameters": YARN}, (56, 8, 128, 18432, 1e-6, YARN, 4096)),
        ("minicpm3", {}, (20, 5, 128, 6400, 1e-5, {**PLAIN, "rope_theta": 1e4}, 32768)),
        ("glm4_moe_lite", {}, (16, 8, 128, 10240, 1e-5, {**PLAIN, "rope_theta": 1e4}, 202752)),
        # heads that do not divide the width
        ("glm4_moe", {"hidden_size": 5120, "intermediate_size": 12288, "head_dim": 128},
         (40, 8, 128, 12288, 1e-5, {**PLAIN, "rope_theta": 1e4}, 131072)),
        # one expert's width, or none
        ("gpt_oss", {}, (64, 8, 64, 8704, 1e-5, None, 131072)),
        ("minimax_m2", {}, (48, 8, 128, 9216, 1e-6, {**PLAIN, "rope_theta": 5e6}, 196608)),
        ("olmoe", {"intermediate_size": 1024}, (16, 16, 128, 6144, 1e-5, {**PLAIN, "rope_theta": 1e4}, 4096)),
        ("qwen3_5_moe_text", {}, (16, 2, 256, 6144, 1e-6, {**PLAIN, "rope_theta": 1e4}, 32768)),
        ("gemma3n_text", {}, (8, 2, 256, 6144, 1e-6, {**PLAIN, "rope_theta": 1e6}, 32768)),
        # LayerNorm under any name
        ("cohere2", {}, (64, 64, 128, 22528, 1e-5, {**PLAIN, "rope_theta": 1e4}, 8192)),
        ("starcoder2", {}, (24, 2, 128, 12288, 1e-5, {**PLAIN, "rope_theta": 1e4}, 4096)),
        ("nemotron", {"norm_eps": 3e-5}, (48, 8, 128, 24576, 3e-5, {**PLAIN, "rope_theta": 1e4}, 4096)),
        # rotary settings by layer type, unknown, or none
        ("gemma3_text", {}, (8, 4, 256, 9216, 1e-6, {**PLAIN, "rope_theta": 1e6}, 131072)),
        ("gemma4_text", {}, (8, 4, 256, 9216, 1e-6, {**PLAIN, "rope_theta": 1e6}, 131072)),
        ("olmo3", {}, (32, 32, 128, 11008, 1e-5, {**PLAIN, "rope_theta": 5e5}, 2048)),
        ("laguna", {}, (16, 8, 128, 8192, 1e-6, {**PLAIN, "rope_theta": 5e5}, 131072)),
        ("jamba", {}, (32, 8, 128, 14336, 1e-6, {**PLAIN, "rope_theta": 1e4}, 262144)),
        ("qwen2_5_vl_text", {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
         (64, 8, 128, 29568, 1e-5, {**PLAIN, "rope_theta": 1e6}, 32768)),
        # other words for everything, and no length at all
        ("gpt_neox", {}, (64, 8, 96, 24576, 1e-5, {**PLAIN, "rope_theta": 1e4}, 2048)),
        ("bloom", {"hidden_size": 1024, "n_head": 16}, (16, 8, 64, 3072, 1e-5, {**PLAIN, "rope_theta": 1e4}, 131072)),
        # factors for the rotated part of a head fit no whole head
        ("phi3", {"rope_parameters": dict(LONG)}, (32, 32, 96, 8192, 1e-5, LONG, 4096)),
        ("phi3", {"hidden_size": 4096, "rope_parameters": {**LONG, "partial_rotary_factor": 0.75}},
         (32, 32, 128, 8192, 1e-5, {**PLAIN, "rope_theta": 1e4}, 4096)),
    ],
)  # fmt: skip
def test_what_follows_from_a_target(kind, values, expected):
    found = shaped(kind, **values)
    rope = found[5] if expected[5] is None else {key: found[5].get(key) for key in expected[5]}
    assert (*found[:5], None if expected[5] is None else rope, found[6]) == expected
    assert not {"partial_rotary_factor", "mrope_section", "mrope_interleaved"} & found[5].keys()
    if expected[5] is not None and expected[5].keys() == {"rope_type", "rope_theta"}:
        assert found[5] == expected[5]


def test_a_target_wider_than_its_embedding_gives_the_draft_the_embeddings_width():
    assert shaped("mixtral", width=2048)[3] == 14336 and shaped("mixtral", width=8192)[3] == 3 * 8192


def test_what_the_user_says_goes_first():
    shape = {"num_attention_heads": 48, "num_key_value_heads": 6, "head_dim": 96, "intermediate_size": 1000, "rope": "plain"}
    assert shaped("deepseek_v3", shape=shape, rope_parameters=YARN)[:4] == (48, 6, 96, 1000)
    assert shaped("deepseek_v3", shape=shape, rope_parameters=YARN)[5] == {**PLAIN, "rope_theta": 1e4}
    assert shaped("deepseek_v3", shape={"num_attention_heads": 20})[:2] == (20, 5)  # as many with keys as divide them


def test_heads_with_keys_that_divide_no_heads_of_the_target_are_named():
    with pytest.raises(
        UserError, match=r"draft.num_key_value_heads=5 does not divide the 32 attention heads .* set draft.num_attention_heads"
    ):
        shaped("llama", shape={"num_key_value_heads": 5})


@pytest.mark.parametrize("make", [make_method, make_eagle3])
@pytest.mark.parametrize("kind", ["deepseek_v3", "qwen3_5_moe_text", "gemma4_text", "nemotron", "olmoe", "bloom"])
def test_every_target_makes_a_draft_that_computes(tiny_target, kind, make):
    """The draft's own Transformers config accepts it, and its rotation has the size of its heads."""
    sizes = {"vocab_size": 64, "hidden_size": 256, "num_hidden_layers": 6, "n_layer": 6}
    target = CONFIG_MAPPING[kind](
        **{key: value for key, value in sizes.items() if key in CONFIG_MAPPING[kind]().to_dict() or key == "hidden_size"}
    )
    table = torch.zeros(64, 256)
    wide = replace(tiny_target, config=target, embedding=table, head=table)
    model = make(wide).skeleton()
    cos, _ = model.rotary(torch.arange(3), torch.float32)
    assert cos.shape == (3, 1, model.config.head_dim) and torch.isfinite(cos).all()


def test_a_target_without_an_end_of_text_is_fine():
    found = taken_over(DFlashConfig(), PreTrainedConfig(hidden_size=512, num_attention_heads=4, num_hidden_layers=6), 512)
    assert (found["bos_token_id"], found["eos_token_id"]) == (None, None)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (
            DFlashConfig,
            {"num_attention_heads": 6, "num_key_value_heads": 4},
            "num_attention_heads=6 is no multiple of num_key_value_heads=4",
        ),
        (DFlashConfig, {"head_dim": 7}, "head_dim"),
        (DFlashConfig, {"intermediate_size": 0}, "intermediate_size"),
        (DFlashConfig, {"rope": "yarn"}, "rope"),
        (DFlashConfig, {"sliding_window": 0}, "sliding_window"),
        (DFlashConfig, {"num_layers": 3, "sliding_window": 8, "layer_types": ("sliding_attention",)}, "names 1 layers, but num_layers=3"),
        (DFlashConfig, {"num_layers": 1, "layer_types": ("sliding_attention",)}, "sliding_window=None does not go with layer_types"),
        (DFlashConfig, {"num_layers": 1, "sliding_window": 8, "layer_types": ("full_attention",)}, "sliding_window=8 does not go with"),
        (DFlashConfig, {"num_layers": 1, "layer_types": ("chunked_attention",)}, "layer_types"),
        (Eagle3Config, {"sliding_window": 8}, "serve an EAGLE-3 layer without its window"),
        (Eagle3Config, {"layer_types": ("full_attention",)}, "serve an EAGLE-3 layer without its window"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_the_config(kind, values, words):
    with pytest.raises(ValueError, match=words):
        kind(**values)


def test_an_eagle3_head_count_must_divide_the_width(tiny_target):
    with pytest.raises(UserError, match="draft.num_attention_heads=6 does not divide the target's width 32"):
        make_eagle3(tiny_target, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    assert make_method(tiny_target, num_attention_heads=6, num_key_value_heads=2, head_dim=8)  # a Qwen config does not ask for it


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (["full_attention"] * 2, None, False, 2, None)),
        ({"sliding_window": 2048}, (["sliding_attention"] * 2, 2048, True, 0, True)),
        ({"sliding_window": 9, "layer_types": ("full_attention", "sliding_attention")},
         (["full_attention", "sliding_attention"], 9, True, 1, None)),
    ],
)  # fmt: skip
def test_windows_are_written_in_all_keys_that_readers_look_for(tiny_target, options, expected):
    """llama.cpp knows one direction for all layers, which can be said where all slide: as is_causal, which the others read too."""
    options = DFlashConfig(num_layers=2, target_layer_ids=(1, 3), **options)
    values = draft_config(options, tiny_target.config, (64, 32), 63).to_dict()
    assert (
        tuple(values.get(key) for key in ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "is_causal"))
        == expected
    )
