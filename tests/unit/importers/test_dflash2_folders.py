"""DFlash2 folders as z-lab and speculators write them. Oracle: the definition in float64 with the very numbers that were written."""

from types import SimpleNamespace

import pytest
import torch

from tests.unit.importers.foreign import (
    DFLASH_SHAPES,
    EPS,
    HEADS,
    KV,
    SIZES,
    SPECULATORS,
    THETA,
    ZLAB,
    D,
    H,
    double,
    paired,
    proposed,
    tensors,
    write,
)
from tests.unit.methods.dflash2_reference import block_hidden, chain
from tests.unit.tiny import MASK, VOCABULARY, B, make_dflash2
from torchspec.errors import UserError
from torchspec.training.warm import fit, read_source

K, R, T, G = 5, 6, 3, 4  # candidates, rank, taps, groups
HEAD = {"conv_kernel_size": T, "conv_group_size": H // G, "selector_rank": R, "selector_top_k": K}
NESTED = {**ZLAB["dflash_config"], **HEAD, "block_size": B}
OF_ZLAB = {**ZLAB, "architectures": ["DFlash2DraftModel"], "dflash_config": NESTED}
OF_SPECULATORS = {
    **SPECULATORS, **HEAD, "speculators_model_type": "dflash2", "architectures": ["DFlash2DraftModel"], "draft_vocab_size": VOCABULARY,
    "aux_hidden_state_layer_ids": [2, 4], "block_size": B, "mask_token_id": MASK, "sample_from_anchor": False,
    "sliding_window_non_causal": True,
    "transformer_layer_config": {
        **SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}, "rms_norm_eps": EPS, "model_type": "qwen3",
        "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "use_sliding_window": False,
    },
}  # fmt: skip
CONVOLUTIONS = {
    f"layers.{i}.{part}_conv.{name}": shape
    for i in range(2)
    for part in ("attention", "mlp")
    for name, shape in {"base_kernel": (2, T, H), "kernel_projection.weight": (2 * T * G, H)}.items()
}
TABLES = {f"candidate_selector.{name}_codebook": (VOCABULARY, R) for name in ("predecessor", "successor")}
SHAPES = DFLASH_SHAPES | CONVOLUTIONS | TABLES | {"candidate_selector.hidden_projection.weight": (R, H)}
SLIDES = {"layer_types": ["sliding_attention"] * 2, "sliding_window": 5, "use_sliding_window": True}  # as the published ones, with 2,048


@pytest.fixture(scope="module")
def weights():
    return tensors(SHAPES)


def by_hand(weights, target, text, anchor: int, windows: dict, law=lambda x: x, slots: int = B) -> list[int]:
    config = SimpleNamespace(
        rms_norm_eps=EPS, head_dim=D, num_attention_heads=HEADS, num_key_value_heads=KV, num_hidden_layers=2, block_size=slots,
        rope_parameters={"rope_theta": THETA}, dflash_config={"mask_token_id": MASK}, **windows,
    )  # fmt: skip
    ids, context = text
    exact = double(weights)
    states = block_hidden(exact, config, target.embedding.double(), context.double(), anchor, ids[anchor])
    return chain(exact, states[1:], target.head.double(), ids[anchor], K, law)


WHOLE = {"layer_types": ["full_attention"] * 2, "sliding_window": None}
CAPPED = {"output_multiplier": 0.5, "final_logit_softcapping": 3.0}
FOLDERS = {
    "z-lab, slides": ({**OF_ZLAB, **SLIDES}, SLIDES, lambda x: x),
    "z-lab, scaled and capped": ({**OF_ZLAB, "dflash_config": NESTED | CAPPED}, WHOLE, lambda x: 3 * (x * 0.5 / 3).tanh()),
    "speculators": (OF_SPECULATORS, WHOLE, lambda x: x),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_proposes_what_the_definition_gives(tmp_path, tiny_folder, tiny_target, weights, name):
    values, windows, law = FOLDERS[name]
    pair = paired(write(tmp_path, values, weights), tiny_folder)
    assert (pair.method.layer_ids, pair.method.block_size, pair.method.mask_token_id) == ((1, 3), B, MASK)
    alone = []
    for anchor in (9, 12, 17):
        served, document, text = proposed(pair, anchor)
        assert served == document == by_hand(weights, tiny_target, text, anchor, windows, law)
        without = {n: w * ("successor" not in n) for n, w in weights.items()}
        alone.append(by_hand(without, tiny_target, text, anchor, windows, law) == served)
    assert not all(alone)  # the selector has a say


def test_fewer_draft_tokens_are_a_shorter_block_for_convolutions_as_well(tmp_path, tiny_folder, tiny_target, weights):
    """As vLLM takes it: also one that is shorter than the kernel."""
    pair = paired(write(tmp_path, OF_ZLAB, weights), tiny_folder, draft_tokens=1)
    served, document, text = proposed(pair, 9)
    assert served == document == by_hand(weights, tiny_target, text, 9, WHOLE, slots=2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**OF_SPECULATORS, "draft_vocab_size": 9}, "candidates among 9 of the target's tokens"),
        ({**OF_ZLAB, "dflash_config": {k: v for k, v in NESTED.items() if k != "selector_rank"}}, "lacks selector_rank"),
        ({**OF_ZLAB, "dflash_config": {**NESTED, "projector_type": "domino"}}, "the projector 'domino'"),
    ],
)
def test_what_is_not_computed_here_is_refused(tmp_path, tiny_folder, weights, values, words):
    with pytest.raises(UserError, match=words):
        paired(write(tmp_path, values, weights), tiny_folder)


def fitted(folder, target, **options):
    method = make_dflash2(target, **{key: HEAD[key] for key in ("conv_kernel_size", "conv_group_size", "selector_top_k")}, **options)
    return fit(read_source(folder, target), method, method.build(torch.Generator().manual_seed(0)))


def test_a_training_goes_on_with_a_draft_of_its_kind_and_with_a_backbone_alone(tmp_path, tiny_target, weights):
    """Of DFlash all is taken, the head starts afresh and says so; of another group size the convolutions' own kernels are left."""
    whole = fitted(write(tmp_path / "whole", OF_ZLAB, weights), tiny_target)
    assert whole.taken.keys() == SHAPES.keys() and whole.fresh == [] and whole.share == 1.0
    bare = fitted(write(tmp_path / "bare", ZLAB, {name: weights[name] for name in DFLASH_SHAPES}), tiny_target)
    assert bare.taken.keys() == DFLASH_SHAPES.keys() and set(bare.fresh) == SHAPES.keys() - DFLASH_SHAPES.keys() and bare.share == 1.0
    assert bare.lines()[-1].startswith("starts at random: layers.0.attention_conv.base_kernel")
    other = {**OF_ZLAB, "dflash_config": {**NESTED, "selector_top_k": 7, "conv_kernel_size": T}}
    again = fitted(write(tmp_path / "other", other, weights), tiny_target)
    assert again.fresh == [] and again.differs["dflash_config.selector_top_k"] == "7 there, 5 in this run"
