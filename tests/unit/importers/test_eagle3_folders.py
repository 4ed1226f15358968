"""EAGLE-3 checkpoints as SpecForge, SGLang, EAGLE's authors and others write them; proposals equal the definition."""

import pytest
import torch

from tests.unit.importers.foreign import (
    EAGLE3,
    EAGLE3_SHAPES,
    IDS,
    PER_HEAD,
    D,
    H,
    K,
    eagle3_by_hand,
    paired,
    proposed,
    pruned,
    tensors,
    write,
)
from tests.unit.tiny import NEVER, VOCABULARY, random_prompt
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.errors import ContractError, UserError
from torchspec.methods.eagle3.format import AUX

EVERY = torch.arange(VOCABULARY)
STEPS = 3


def config(**changes) -> dict:
    """A config.json with some keys another, or absent where None."""
    return {key: value for key, value in {**EAGLE3, **changes}.items() if value is not None}


@pytest.fixture
def weights():
    return tensors(EAGLE3_SHAPES)


def load(folder, target, draft_tokens=STEPS):
    return paired(folder, target, draft_tokens)


def renamed(weights: dict, prefix: str, layer: str) -> dict:
    return {name if name in ("d2t", "t2d") else prefix + name.replace("midlayer.", layer): value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("prefix", "layer", "architecture", "files"),
    [
        ("", "midlayer.", "LlamaForCausalLMEagle3", "single"),
        ("", "layers.0.", "Eagle3LlamaForCausalLM", "sharded"),
        ("model.", "layers.0.", "Eagle3Qwen3vlForCausalLM", "single"),
        ("model.", "midlayer.", "LlamaForCausalLM", "pickle"),  # EAGLE's own checkpoints
    ],
)
def test_every_spelling_proposes_what_the_definition_gives(
    tmp_path, tiny_folder, tiny_target, weights, prefix, layer, architecture, files, capsys
):
    own = pruned()
    theirs = renamed(weights | own, prefix, layer)
    folder = write(tmp_path, config(architectures=[architecture], draft_vocab_size=len(IDS)), theirs, files)
    pair = load(folder, tiny_folder)
    assert pair.method.layer_ids == (1, 3, 5) and pair.method.block_size == STEPS + 1
    for anchor in (1, 9, 17):
        served, document, text = proposed(pair, anchor)
        assert served == document == eagle3_by_hand(weights, tiny_target.embedding, own["lm_head.weight"], text, anchor, STEPS, IDS)
    assert "9 of the target's 64 tokens, through a head of its own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "nested"),
    [
        ({"norm_before_residual": True}, False), ({"norm_before_fc": True}, False), ({"norm_before_fc": True}, True),
        ({"fc_norm": True, "norm_output": True}, False), ({}, False),
    ],
    ids=["norm_before_residual", "norm_before_fc", "norm_before_fc, nested", "EAGLE-3.1", "none"],
)  # fmt: skip
def test_every_flag_is_the_definitions(tmp_path, tiny_folder, tiny_target, weights, flags, nested):
    """norm_before_fc stands at the top or in eagle_config."""
    norms = {"norm_before_fc": {"input_norm.weight": (K * H,)}, "fc_norm": {f"fc_norm.{i}.weight": (H,) for i in range(K)}}
    for flag in flags:
        weights |= tensors(norms.get(flag, {}), seed=2)
    inside = {"eagle_config": {"use_aux_hidden_state": True, **flags}} if nested and "norm_before_fc" in flags else {}
    pair = load(write(tmp_path, config(**({} if inside else flags), **inside), weights), tiny_folder)
    served, document, text = proposed(pair, 9)
    by_hand = eagle3_by_hand(weights, tiny_target.embedding, tiny_target.head, text, 9, STEPS, EVERY, **flags)
    assert served == document == by_hand


@pytest.mark.parametrize("tables", ["copies", "embedding", "head", "both"])
def test_own_tables_are_used_and_copies_are_not(tmp_path, tiny_folder, tiny_target, weights, tables, capsys):
    own = {"embed_tokens.weight": tiny_target.embedding, "lm_head.weight": tiny_target.head}
    if tables in ("embedding", "both"):
        own["embed_tokens.weight"] = torch.randn(VOCABULARY, H, generator=torch.Generator().manual_seed(3))
    if tables in ("head", "both"):
        own["lm_head.weight"] = tensors({"h": (VOCABULARY, H)}, seed=4)["h"]
    pair = load(write(tmp_path, config(), weights | own), tiny_folder)
    said = capsys.readouterr().out
    assert ("64 of 64 rows differ" in said, "a head of its own" in said) == (tables in ("embedding", "both"), tables in ("head", "both"))
    assert ("lm_head.weight" in pair.model.state_dict()) == (tables in ("head", "both"))
    served, document, text = proposed(pair, 9)
    assert served == document == eagle3_by_hand(weights, own["embed_tokens.weight"], own["lm_head.weight"], text, 9, STEPS, EVERY)


@torch.no_grad()
def test_a_draft_with_its_own_tables_decodes_without_loss(tmp_path, tiny_folder, weights):
    own = pruned() | {"embed_tokens.weight": torch.randn(VOCABULARY, H, generator=torch.Generator().manual_seed(3))}
    pair = load(write(tmp_path, config(draft_vocab_size=len(IDS)), weights | own), tiny_folder)
    prompt, drafter = random_prompt(1, 9), pair.method.drafter(pair.model)
    fast = speculative_decode(pair.target, drafter, prompt, 60, NEVER)
    assert plain_decode(pair.target, prompt, 60, NEVER).ids == fast.ids and sum(fast.accepted) > 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({AUX: [2, 4]}, (1, 3)),
        ({AUX: None, "eagle_config": {AUX: [1, 3]}}, (1, 3)),
        ({"eagle_config": {AUX: [1, 3]}}, (1, 3)),
        ({"eagle_config": {AUX: [], "use_aux_hidden_state": True}}, (1, 3)),
    ],
    ids=["vLLM", "SGLang", "both", "empty"],
)
def test_layers_are_counted_as_each_reader_counts(tmp_path, tiny_folder, weights, values, expected):
    assert load(write(tmp_path, config(**values), weights), tiny_folder).method.layer_ids[:-1] == expected


def test_layers_that_are_not_named_are_the_servers_default(tmp_path, tiny_folder):
    """The inputs of layers 2, N/2 and N-3; six layers are too few for three that ascend, so the check that refuses names them."""
    shapes = EAGLE3_SHAPES | {"fc.weight": (H, 3 * H)}
    with pytest.raises(UserError, match=r"target_layer_ids=\[1, 2, 2\]"):
        load(write(tmp_path, config(**{AUX: None}), tensors(shapes)), tiny_folder)


def test_two_lists_of_layers_that_disagree_are_refused(tmp_path, tiny_folder, weights):
    values = config(eagle_config={AUX: [2, 4]})  # the same numbers in both places: not the same layers
    with pytest.raises(ContractError, match=r"vLLM capture the layers \[1, 3\] .* but SGLang \[2, 4\]"):
        load(write(tmp_path, values, weights), tiny_folder)


@pytest.mark.parametrize(
    ("trained", "asked", "expected", "said"), [(None, None, 5, True), (None, 2, 2, False), (4, None, 4, False), (4, 7, 7, False)]
)
def test_draft_tokens_are_what_is_asked_or_trained_or_five(tmp_path, tiny_folder, weights, trained, asked, expected, said, capsys):
    pair = load(write(tmp_path, config(ttt_length=trained), weights), tiny_folder, asked)
    assert pair.method.block_size == expected + 1 and len(proposed(pair, 9)[0]) == expected
    assert ("how many tokens to draft: 5" in capsys.readouterr().out) == said


def test_a_qwen3_layer_norms_each_head(tmp_path, tiny_folder, weights):
    """Against the same draft without these norms, whose proposals differ; tests/interop compares with another implementation."""
    norms = tensors({f"midlayer.{name}.weight": (D,) for name in PER_HEAD})
    qwen3 = config(architectures=["Eagle3Qwen3ForCausalLM"], model_type="qwen3", head_dim=D)
    pair = load(write(tmp_path / "qwen3", qwen3, weights | norms), tiny_folder)
    assert {name: tuple(value.shape) for name, value in pair.model.named_parameters() if "q_norm" in name or "k_norm" in name} == {
        "midlayer.self_attn.q_norm.weight": (D,), "midlayer.self_attn.k_norm.weight": (D,),
    }  # fmt: skip
    llama = load(write(tmp_path / "llama", config(), weights), tiny_folder)
    assert proposed(pair, 17)[0] != proposed(llama, 17)[0]
    with pytest.raises(UserError, match="unexpected midlayer.self_attn.k_norm.weight"):
        load(write(tmp_path / "mixed", config(), weights | norms), tiny_folder)


def test_t2d_may_be_missing_and_may_be_numbers(tmp_path, tiny_folder, weights):
    for name, change in {"missing": None, "numbers": pruned()["t2d"].long()}.items():
        own = {key: value for key, value in (pruned() | {"t2d": change}).items() if value is not None}
        pair = load(write(tmp_path / name, config(draft_vocab_size=len(IDS)), weights | own), tiny_folder)
        assert torch.equal(pair.method.served_vocabulary(pair.model).ids, IDS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (config(attention_bias=True), "attention_bias"),
        (config(mlp_bias=True), "mlp_bias"),
        (config(num_hidden_layers=2), "several draft layers"),
        (config(hidden_act="gelu"), "hidden_act"),
        (config(layer_types=["sliding_attention"], sliding_window=64), "a sliding window"),
        (config(eagle_config={"use_aux_hidden_state": False}), "no auxiliary features"),
        (config(quantization_config={"quant_method": "fp8"}), "quantised weights"),
        (config(vocab_size=65), "made for a target with vocabulary 65"),
        (config(hidden_size=48, target_hidden_size=H), "width 48 and 6 layers"),
        (config(draft_vocab_size=9), "holds no lm_head.weight"),
        (config(architectures=["LlamaForCausalLM"], draft_vocab_size=None), "is a LlamaForCausalLM; supported are"),
    ],
)
def test_what_is_not_computed_here_is_refused_in_one_sentence(tmp_path, tiny_folder, weights, values, words):
    with pytest.raises(UserError, match=words) as refusal:
        load(write(tmp_path, values, weights), tiny_folder)
    assert "\n" not in str(refusal.value)


def test_a_parallel_draft_under_another_name_is_refused_by_its_tensors(tmp_path, tiny_folder, weights):
    with pytest.raises(UserError, match="unexpected mask_hidden"):
        load(write(tmp_path, config(), weights | {"mask_hidden": torch.ones(1, 1, K * H)}), tiny_folder)
