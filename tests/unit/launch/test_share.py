"""A draft's cost beside its target's: counted by hand, and from the modules of the target where they run."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.unit.tiny import make_eagle3, make_method
from torchspec.acceptance.sampling import GREEDY
from torchspec.doctor.target import cost
from torchspec.launch.memory import key_value_bytes
from torchspec.launch.plan import serving, shape
from torchspec.launch.share import MOST, active_parameters, share
from torchspec.target.frozen import FrozenTarget

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
TARGETS = {
    "llama": {"intermediate_size": 64},
    "llama, tied": {"intermediate_size": 64, "tie_word_embeddings": True},
    "qwen3_moe": {"intermediate_size": 64, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2},
    "mixtral": {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("name", TARGETS)
def test_active_parameters_are_those_that_one_token_meets(tmp_path, name):
    """By hand: attention 32 x (32 + 16 + 16) + 32 x 32, norms, router, k experts of three matrices, head."""
    kind, values = name.split(",")[0], TARGETS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES, **values))
    model.save_pretrained(tmp_path)
    size, chosen = values.get("moe_intermediate_size", values["intermediate_size"]), values.get("num_experts_per_tok", 1)
    experts = values.get("num_experts", values.get("num_local_experts", 0))
    head_size = model.config.to_dict().get("head_dim") or 8
    per_head_norms = 2 * head_size if kind == "qwen3_moe" else 0
    attention = 32 * head_size * (4 + 2 + 2) + 32 * head_size * 4 + per_head_norms
    layer = attention + 2 * 32 + experts * 32 + chosen * 3 * 32 * size
    assert active_parameters(FrozenTarget.load(tmp_path, torch.float32)) == 2 * layer + 32 + 64 * 32


def test_the_share_counts_the_drafts_own_and_the_head_that_it_proposes_from(tiny_target):
    """6 Llama layers of 9,280 parameters against 2 DFlash layers of 9,296, or one of EAGLE-3; V x H = 2,048."""
    target = 6 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 64) + 32 + 2048
    dflash = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 64 + 16) + 32 * 64 + 64 + 2048
    eagle3 = 64 * 32 + 64 * 16 * 2 + 32 * 32 + 3 * 32 * 64 + 96 + 32 * 64 + 32
    assert share(make_method(tiny_target)) == pytest.approx(dflash / target)
    assert share(make_eagle3(tiny_target)) == pytest.approx((eagle3 + 2048) / target)
    assert share(make_eagle3(tiny_target, torch.arange(16))) == pytest.approx((eagle3 + 16 * 32) / target)


def test_keys_and_values_per_token_are_what_a_drafters_cache_grows_by(tiny_target):
    method = make_method(tiny_target, num_attention_heads=8, num_key_value_heads=4, head_dim=6)
    model = method.skeleton()
    sizes = []
    for tokens in (5, 6):
        drafter = method.drafter(model)
        drafter.extend(torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens, 64))
        with torch.no_grad():
            drafter.propose(1, GREEDY)
        sizes.append(sum(rows.nbytes for pair in drafter.cache for rows in pair))
    assert key_value_bytes(method.config, 4) == sizes[1] - sizes[0] == 2 * 2 * 4 * 6 * 4


def test_a_draft_that_costs_more_than_a_tenth_is_told_and_a_lighter_one_is_not(tiny_target):
    heavy = make_method(tiny_target)
    assert share(heavy) > MOST and cost(heavy).verdict == "look" and "draft.intermediate_size" in cost(heavy).fix
    assert "more than 10%" in serving(heavy)
    assert shape(heavy) == "2 layer(s), 4 heads of 8, 2 with keys, MLP 64, RoPE default with theta 10000"
    assert "window 7 in 1 of them" in shape(make_method(tiny_target, sliding_window=7, layer_types=("full_attention", "sliding_attention")))


def test_a_light_draft_is_no_finding(tiny_target):
    light = make_eagle3(
        tiny_target, torch.arange(4), num_attention_heads=1, num_key_value_heads=1, head_dim=2, intermediate_size=1,
        target_layer_ids=(1, 3),
    )  # fmt: skip
    assert share(light) <= MOST and cost(light).verdict == "ok" and "more than" not in serving(light)
