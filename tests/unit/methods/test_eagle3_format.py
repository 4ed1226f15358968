"""The folder of an EAGLE-3 draft: config and tensors in the words of its readers, a vocabulary that maps back, faults that are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.unit.importers.foreign import paired
from tests.unit.tiny import FACTS, HIDDEN, LAYERS, B, answered, lively, make_eagle3, random_prompt
from torchspec.acceptance.sampling import GREEDY, Sampler
from torchspec.config import RunConfig
from torchspec.errors import ContractError, UserError
from torchspec.export.hf import check_export, export_checkpoint
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.eagle3.format import AUX, default_layer_ids, draft_config
from torchspec.methods.vocabulary import DraftVocabulary, check_vocabulary, frequent_tokens
from torchspec.methods.walk import Walk, log_probabilities
from torchspec.training import checkpoint, checkpoints
from torchspec.training.distributed import World
from torchspec.training.optim import build_optimizers

# the list of the serving format, written out for K = 2, H = 32, 4 heads and 2 kv heads of 8, I = 64
SHAPES = {
    "fc.weight": (32, 64), "norm.weight": (32,), "midlayer.hidden_norm.weight": (32,), "midlayer.input_layernorm.weight": (32,),
    "midlayer.post_attention_layernorm.weight": (32,), "midlayer.self_attn.q_proj.weight": (32, 64),
    "midlayer.self_attn.k_proj.weight": (16, 64), "midlayer.self_attn.v_proj.weight": (16, 64),
    "midlayer.self_attn.o_proj.weight": (32, 32), "midlayer.mlp.gate_proj.weight": (64, 32), "midlayer.mlp.up_proj.weight": (64, 32),
    "midlayer.mlp.down_proj.weight": (32, 64),
}  # fmt: skip
IDS = torch.tensor([1, 2, 5, 8, 13, 21, 34, 55, 63])
OPTIONS = {
    "plain": ({}, {}),
    "norm_before_fc": ({"norm_before_fc": True}, {"input_norm.weight": (64,)}),
    "EAGLE-3.1": ({"fc_norm": True, "norm_output": True}, {"fc_norm.0.weight": (32,), "fc_norm.1.weight": (32,)}),
    "pruned": ({"ids": IDS}, {"lm_head.weight": (9, 32), "d2t": (9,), "t2d": (64,)}),
}


def export(root: Path, method, dtype: str) -> Path:
    target = {"target_model_path": str(method.target.folder), "dtype": dtype}
    config = RunConfig(output_dir=str(root), model=target, draft=method.options, dataset={"train_data_path": "chats"})
    model = lively(method.build(torch.Generator()))
    saver = checkpoint.Saver(root / "checkpoints", config, World(0, 1, torch.device("cpu")), method.config, FACTS)
    saver.save(checkpoint.TrainState(step=7), model, build_optimizers(model, config.training))
    saver.finish()
    return export_checkpoint(checkpoints.folder(root / "checkpoints", 7), root / "draft")


@pytest.fixture(params=OPTIONS)
def case(request, tiny_target):
    options, extra = OPTIONS[request.param]
    return make_eagle3(tiny_target, **options), SHAPES | extra


def rewrite(draft: Path, plant) -> None:
    weights, config = load_file(draft / "model.safetensors"), json.loads((draft / "config.json").read_text())
    plant(weights, config)
    save_file(weights, draft / "model.safetensors")
    (draft / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_folder_holds_the_formats_tensors_and_floats_in_the_trained_precision(case, tmp_path, dtype):
    method, shapes = case
    written = load_file(export(tmp_path, method, dtype) / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in written.items()} == shapes
    precisions = {name: value.dtype for name, value in written.items() if value.is_floating_point()}
    assert set(precisions.values()) == {getattr(torch, dtype)} and len(written) - len(precisions) in (0, 2)


def test_the_config_names_each_layer_as_each_reader_counts(case, tmp_path):
    method, _ = case
    config = json.loads((export(tmp_path, method, "float32") / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1, "vocab_size": 64, "head_dim": 8,
        "draft_vocab_size": method.options.draft_vocab_size, "hidden_size": HIDDEN, "num_target_layers": 6, "ttt_length": B - 1,
        "num_aux_hidden_states": 2, AUX: [2, 4], "fc_norm": method.options.fc_norm, "norm_output": method.options.norm_output,
        "norm_before_residual": False, "norm_before_fc": method.options.norm_before_fc, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "attention_bias": False,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected  # draft_vocab_size null: SGLang then takes the target's head
    assert config["eagle_config"] == {AUX: list(LAYERS), "use_aux_hidden_state": True, "norm_before_fc": method.options.norm_before_fc}


def test_a_loaded_draft_proposes_what_the_trained_one_does(case, tmp_path, tiny_folder, eagle3_oracle):
    method, _ = case
    pair = paired(export(tmp_path, method, "float32"), tiny_folder)
    assert (pair.method.layer_ids, pair.method.block_size) == (method.layer_ids, B)
    features = pair.target.capture(answered(eagle3_oracle, random_prompt(0, 9), 20))
    anchors = torch.arange(1, 28)
    trained = lively(method.build(torch.Generator()))
    with torch.no_grad():
        assert torch.equal(pair.method.propose(pair.model, features, anchors), method.propose(trained, features, anchors))


def test_the_vocabulary_maps_back_and_its_head_rows_are_the_targets(tiny_target, tmp_path):
    written = load_file(export(tmp_path, make_eagle3(tiny_target, ids=IDS), "float32") / "model.safetensors")
    assert (written["d2t"] + torch.arange(9)).tolist() == written["t2d"].nonzero().flatten().tolist() == IDS.tolist()
    assert torch.equal(written["lm_head.weight"], tiny_target.head[IDS])


def test_a_vocabulary_is_the_most_frequent_tokens_in_ascending_order():
    counts = torch.tensor([0, 5, 2, 2, 9, 0, 2])
    assert [frequent_tokens(counts, n).tolist() for n in (1, 2, 4, 6)] == [[4], [1, 4], [1, 2, 3, 4], [0, 1, 2, 3, 4, 6]]


def test_choices_are_target_ids(tiny_target):
    vocabulary = DraftVocabulary(tiny_target.head[IDS], IDS)
    hidden = torch.randn(300, HIDDEN, generator=torch.Generator().manual_seed(0))
    logits = torch.full((300, 64), -torch.inf)
    logits[:, IDS] = hidden @ tiny_target.head[IDS].T
    assert torch.equal(vocabulary.choose(vocabulary.project(hidden), GREEDY, 64)[0], logits.argmax(-1))
    tokens, q = vocabulary.choose(vocabulary.project(hidden), Sampler(0.7, seed=0), 64)
    assert set(tokens.tolist()) <= set(IDS.tolist())
    torch.testing.assert_close(q, (logits / 0.7).softmax(-1))
    walk, text = Walk(hidden.repeat_interleave(64, dim=0)[:, None], vocabulary.project), torch.arange(64).repeat(300)
    log_q = log_probabilities(walk, text, text[:, None], vocabulary, 0.7).view(300, 64)
    torch.testing.assert_close(log_q, (logits / 0.7).log_softmax(-1))  # -inf for tokens that the draft does not have


def wrong_offset(w, c):
    w["d2t"][3] += 1


def absolute_ids(w, c):
    w["d2t"] += torch.arange(len(w["d2t"]))


def marks_another(w, c):
    w["t2d"][0] = True


@pytest.mark.parametrize("plant", [wrong_offset, absolute_ids, marks_another])
def test_planted_a_vocabulary_whose_maps_disagree_is_refused_by_export_and_by_loading(tiny_target, tiny_folder, tmp_path, plant):
    draft = export(tmp_path, make_eagle3(tiny_target, ids=IDS), "float32")
    rewrite(draft, plant)
    with pytest.raises(ContractError, match="two maps of its vocabulary disagree"):
        check_export(draft, load_file(draft / "model.safetensors"))
    with pytest.raises(ContractError, match="two maps of its vocabulary disagree"):
        paired(draft, tiny_folder)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda w, c: c.update({AUX: list(LAYERS)}), "vLLM and .* for SGLang"),
        (lambda w, c: c.update(num_aux_hidden_states=3), "with 3 layers counted"),
        (lambda w, c: c["eagle_config"].update({AUX: [3, 1]}), "must ascend"),
        (lambda w, c: c["eagle_config"].update({AUX: [1, 5]}), "must ascend and end below"),
        (lambda w, c: c["eagle_config"].update({AUX: [1, 2, 3]}), "fc takes 64 features but 3 layers"),
    ],
)
def test_planted_an_export_that_servers_would_read_otherwise_is_refused(tiny_eagle3, tmp_path, plant, words):
    draft = export(tmp_path, tiny_eagle3, "float32")
    weights = load_file(draft / "model.safetensors")
    check_export(draft, weights)
    rewrite(draft, plant)
    with pytest.raises(ContractError, match=words):
        check_export(draft, weights)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda w, c: c.update(num_hidden_layers=2), "several draft layers"),
        (lambda w, c: c.update(attention_bias=True), "attention_bias"),
        (lambda w, c: c.update(hidden_act="gelu"), "hidden_act"),
        (lambda w, c: c.update(vocab_size=65), "made for a target with vocabulary 65"),
        (lambda w, c: w.pop("midlayer.hidden_norm.weight"), "missing midlayer.hidden_norm.weight"),
        (lambda w, c: w.update({"fc.bias": torch.zeros(32)}), "unexpected fc.bias"),
        (lambda w, c: c.update(architectures=["EagleLlamaForCausalLM"]), "supported are DFlashDraftModel, .*LlamaForCausalLMEagle3"),
    ],
)
def test_a_draft_that_does_not_fit_is_not_loaded(tiny_eagle3, tiny_folder, tmp_path, plant, words):
    draft = export(tmp_path, tiny_eagle3, "float32")
    paired(draft, tiny_folder)
    rewrite(draft, plant)
    with pytest.raises(UserError, match=words):
        paired(draft, tiny_folder)


@pytest.mark.parametrize(("layers", "expected"), [(30, (1, 14, 26)), (36, (1, 17, 32)), (32, (1, 15, 28))])
def test_default_layers_are_what_servers_assume(layers, expected):
    """vLLM and SGLang capture the inputs of layers 2, N//2 and N-3 where a draft names none."""
    assert default_layer_ids(layers) == expected == tuple(a - 1 for a in (2, layers // 2, layers - 3))


@pytest.mark.parametrize("ids", [(3, 1), (1, 1), (1, 5), (-1, 2), ()])
def test_layers_that_servers_cannot_capture_are_refused(tiny_target, ids):
    with pytest.raises(UserError, match=r"draft.target_layer_ids=.* lie in 0..4"):
        draft_config(Eagle3Config(target_layer_ids=ids), tiny_target)


@pytest.mark.parametrize("ids", [(2, 3), (0, 1, 2, 3, 4)])
def test_any_number_of_layers_may_be_captured(tiny_target, ids):
    method = make_eagle3(tiny_target, target_layer_ids=ids, fc_norm=True)
    assert method.config.num_aux_hidden_states == len(ids) and method.layer_ids == (*ids, 5)
    assert method.skeleton().fc.weight.shape == (HIDDEN, len(ids) * HIDDEN)


def test_a_vocabulary_that_prunes_nothing_and_a_target_of_two_widths_are_refused(tiny_target):
    with pytest.raises(UserError, match="draft_vocab_size=64 is not below the target's 64 tokens"):
        draft_config(Eagle3Config(target_layer_ids=LAYERS, draft_vocab_size=64), tiny_target)
    wide = type(tiny_target.config).from_dict({**tiny_target.config.to_dict(), "hidden_size": 48, "head_dim": 8})
    with pytest.raises(UserError, match="has 48 and 32; use draft.method=dflash"):
        draft_config(Eagle3Config(target_layer_ids=LAYERS), replace(tiny_target, config=wide))


def test_the_config_survives_the_way_through_a_folder(tiny_eagle3, tmp_path):
    tiny_eagle3.config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["eagle_config"] == tiny_eagle3.config.eagle_config


def test_maps_of_the_whole_range_are_the_identity():
    assert check_vocabulary(torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]
