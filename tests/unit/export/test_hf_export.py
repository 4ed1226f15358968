"""A checkpoint becomes a folder that serves the same draft: names, values, settings, proposals; every planted fault is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.unit.importers.foreign import paired
from tests.unit.tiny import FACTS, HIDDEN, LAYERS, MASK, B, all_valid, answered, lively, make_method, random_prompt, write_target
from torchspec.config import RunConfig
from torchspec.decode.pair import load_pair
from torchspec.errors import ContractError, UserError
from torchspec.export.hf import check_export, export_checkpoint
from torchspec.methods.base import check_served
from torchspec.methods.dflash.method import DFlash
from torchspec.nn.attention import Sight
from torchspec.nn.precision import ComputeIn
from torchspec.target.frozen import FrozenTarget
from torchspec.training import checkpoint, checkpoints
from torchspec.training.distributed import World
from torchspec.training.optim import build_optimizers

# the list of the serving format, written out for D = 2, K = 2, H = 32, 4 heads and 2 kv heads of 8, I = 64
SHAPES = {"fc.weight": (32, 64), "hidden_norm.weight": (32,), "norm.weight": (32,)}
for i in range(2):
    SHAPES |= {
        f"layers.{i}.input_layernorm.weight": (32,),
        f"layers.{i}.post_attention_layernorm.weight": (32,),
        f"layers.{i}.self_attn.q_proj.weight": (32, 32),
        f"layers.{i}.self_attn.k_proj.weight": (16, 32),
        f"layers.{i}.self_attn.v_proj.weight": (16, 32),
        f"layers.{i}.self_attn.o_proj.weight": (32, 32),
        f"layers.{i}.self_attn.q_norm.weight": (8,),
        f"layers.{i}.self_attn.k_norm.weight": (8,),
        f"layers.{i}.mlp.gate_proj.weight": (64, 32),
        f"layers.{i}.mlp.up_proj.weight": (64, 32),
        f"layers.{i}.mlp.down_proj.weight": (32, 64),
    }


def save_checkpoint(root: Path, method: DFlash, model: torch.nn.Module, dtype: str) -> Path:
    target = {"target_model_path": str(method.target.folder), "dtype": dtype}
    config = RunConfig(output_dir=str(root), model=target, draft=method.options, dataset={"train_data_path": "chats"})
    state = checkpoint.TrainState(step=7, best_tau=1.5, best_step=7)
    saver = checkpoint.Saver(root, config, World(0, 1, torch.device("cpu")), method.config, FACTS)
    saver.save(state, model, build_optimizers(model, config.training))
    saver.finish()
    return checkpoints.folder(root, 7)


@pytest.fixture(scope="module")
def model(tiny_method):
    return lively(tiny_method.skeleton())


@pytest.fixture(params=["float32", "bfloat16"], scope="module")
def dtype(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def exported(tiny_method, model, tmp_path_factory, dtype) -> Path:
    folder = tmp_path_factory.mktemp(dtype)
    return export_checkpoint(save_checkpoint(folder / "checkpoints", tiny_method, model, dtype), folder / "draft")


@pytest.fixture(scope="module")
def sound(tiny_method, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    return export_checkpoint(save_checkpoint(folder / "checkpoints", tiny_method, model, "float32"), folder / "draft")


@pytest.fixture
def draft(sound, tmp_path) -> Path:
    """In float32, for planting faults."""
    return shutil.copytree(sound, tmp_path / "draft")


def test_the_folder_holds_the_formats_tensors_with_the_masters_values(exported, model, dtype):
    written = load_file(exported / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in written.items()} == SHAPES
    for name, master in model.named_parameters():
        assert torch.equal(written[name], master.detach().to(getattr(torch, dtype)))
    assert sorted(file.name for file in exported.iterdir()) == ["README.md", "config.json", "model.safetensors", "torchspec.json"]


def test_the_config_says_everything_in_every_spelling_that_readers_look_for(exported, dtype):
    config = json.loads((exported / "config.json").read_text())
    expected = {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": B, "num_hidden_layers": 2, "vocab_size": 64,
        "num_target_layers": 6, "layer_types": ["full_attention"] * 2, "use_sliding_window": False, "hidden_size": HIDDEN,
        "intermediate_size": 64, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 10000.0, "rope_scaling": None,
        "max_position_embeddings": 256, "tie_word_embeddings": False, "dtype": dtype,
    }  # fmt: skip
    assert {key: config.get(key, "absent") for key in expected} == expected
    assert config["dflash_config"] == {"block_size": B, "mask_token_id": MASK, "target_layer_ids": list(LAYERS)}
    assert "target_hidden_size" not in config  # only where it differs from the draft's


def test_the_provenance_tells_run_data_and_state(exported, dtype):
    told = json.loads((exported / "torchspec.json").read_text())
    assert (told["method"], told["data"], told["state"]["step"]) == ("dflash", FACTS, 7)
    assert told["run"]["model"]["dtype"] == dtype


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    ],
)  # fmt: skip
def test_scaled_rotations_survive_the_way_through_the_folder(tmp_path, rope):
    method = make_method(FrozenTarget.load(write_target(tmp_path / "target", rope_parameters=dict(rope)), torch.float32))
    model = lively(method.skeleton())
    draft = export_checkpoint(save_checkpoint(tmp_path / "checkpoints", method, model, "float32"), tmp_path / "draft")
    written = json.loads((draft / "config.json").read_text())
    assert written["rope_theta"] == rope["rope_theta"]
    assert written["rope_scaling"] == {key: value for key, value in rope.items() if key != "rope_theta"}
    read = AutoConfig.from_pretrained(draft).rope_parameters
    assert {key: read.get(key) for key in rope} == rope
    positions = torch.tensor([0, 1, 63, 64, 255])
    served = DFlash.from_config(AutoConfig.from_pretrained(draft), method.target).skeleton()
    for ours, theirs in zip(model.rotary(positions, torch.float32), served.rotary(positions, torch.float32), strict=True):
        assert torch.equal(ours, theirs)


def test_the_loaded_draft_computes_bitwise_what_the_trainers_model_computed(exported, tiny_method, model, tiny_folder, dtype):
    """The trainer casts its masters in each step, the folder holds them cast: the same numbers meet in the same operations."""
    pair = load_pair(exported, str(tiny_folder), dtype, "cpu", False)
    features = pair.target.capture(answered(pair.target, random_prompt(0, 10), 30))
    trainer = DFlash(tiny_method.config, pair.method.target, tiny_method.options, torch.ones(64))
    trained, anchors = ComputeIn(model, getattr(torch, dtype)), torch.arange(1, 39)
    with torch.no_grad():
        hidden = [
            m(*method.inputs(features.prompt.ids, features.context, all_valid([anchors.tolist()], (40,))))
            for method, m in ((trainer, trained), (pair.method, pair.model))
        ]
        assert torch.equal(*hidden) and hidden[0].dtype == getattr(torch, dtype)
        expected = trainer.propose(trained, features, anchors)
        assert torch.equal(pair.method.propose(pair.model, features, anchors), expected)
    assert len(set(expected.flatten().tolist())) > 3
    assert (pair.method.layer_ids, pair.method.block_size, pair.method.mask_token_id) == (LAYERS, B, MASK)
    assert pair.target.layer_ids == LAYERS


def test_a_second_export_replaces_the_first_and_foreign_folders_stay(tiny_method, model, tmp_path):
    made = save_checkpoint(tmp_path / "checkpoints", tiny_method, model, "float32")
    for _ in range(2):
        export_checkpoint(made, tmp_path / "draft")
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="thesis exists and is no export of torchspec"):
        export_checkpoint(made, foreign)
    assert [file.name for file in foreign.iterdir()] == ["chapter.txt"]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run.json; give a checkpoint folder"):
        export_checkpoint(tmp_path, tmp_path / "draft")


# --- faults


def rewrite(draft: Path, plant) -> None:
    weights, config = load_file(draft / "model.safetensors"), json.loads((draft / "config.json").read_text())
    plant(weights, config)
    save_file(weights, draft / "model.safetensors")
    (draft / "config.json").write_text(json.dumps(config))


def lacks_a_tensor(w, c):
    del w["layers.1.self_attn.k_norm.weight"]


def has_one_more(w, c):
    w["fc.bias"] = torch.zeros(32)


def has_unsorted_layers(w, c):
    c["dflash_config"]["target_layer_ids"] = [3, 1]


def has_a_layer_twice(w, c):
    c["dflash_config"]["target_layer_ids"] = [3, 3]


def captures_the_last_layer(w, c):
    c["dflash_config"]["target_layer_ids"] = [1, 5]


def captures_one_layer_more(w, c):
    c["dflash_config"]["target_layer_ids"] = [1, 2, 3]


def has_a_narrow_fc(w, c):
    w["fc.weight"] = w["fc.weight"][:, :32].contiguous()


def has_a_layer_more(w, c):
    c.update(num_hidden_layers=3, layer_types=["full_attention"] * 3)


def has_another_value(w, c):
    w["norm.weight"][3] += 1e-3


def test_check_export_takes_what_is_sound(sound, model):
    check_export(sound, {name: value.detach() for name, value in model.named_parameters()})


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lacks_a_tensor, r"missing tensors \['layers.1.self_attn.k_norm.weight'\]"),
        (has_one_more, r"unexpected \['fc.bias'\]"),
        (has_unsorted_layers, r"target_layer_ids \[3, 1\] must ascend"),
        (has_a_layer_twice, r"target_layer_ids \[3, 3\] must ascend"),
        (captures_the_last_layer, r"target_layer_ids \[1, 5\] must ascend and end below layer 5"),
        (captures_one_layer_more, "fc takes 64 features but 3 layers of width 32"),
        (has_a_narrow_fc, r"tensors \['fc.weight'\] differ"),
        (has_another_value, r"tensors \['norm.weight'\] differ"),
    ],
)
def test_check_export_refuses(draft, model, plant, words):
    expected = {name: value.detach() for name, value in model.named_parameters()}
    rewrite(draft, plant)
    with pytest.raises(ContractError, match=words):
        check_export(draft, expected)


def test_check_export_compares_fc_with_the_layers_even_if_the_checkpoint_had_the_same_fault(draft, model):
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    rewrite(draft, has_a_narrow_fc)
    expected["fc.weight"] = expected["fc.weight"][:, :32].contiguous()
    with pytest.raises(ContractError, match="fc takes 32 features but 2 layers of width 32"):
        check_export(draft, expected)


def says_another(key, value):
    def plant(w, c):
        c[key] = value

    return plant


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lacks_a_tensor, "missing layers.1.self_attn.k_norm.weight"),
        (has_one_more, "unexpected fc.bias"),
        (has_unsorted_layers, "ascend strictly"),
        (captures_the_last_layer, "lie in 0..4"),
        (captures_one_layer_more, r"fc.weight \(32, 64\) instead of \(32, 96\)"),
        (has_a_narrow_fc, r"fc.weight \(32, 32\) instead of \(32, 64\)"),
        (says_another("vocab_size", 65), "made for a target with vocabulary 65, width 32 and 6 layers"),
        (says_another("hidden_size", 40), "made for a target with vocabulary 64, width 40 and 6 layers"),
        (says_another("num_target_layers", 30), "made for a target with vocabulary 64, width 32 and 30 layers"),
        (has_a_layer_more, "missing layers.2"),
        (says_another("architectures", ["Qwen3ForCausalLM"]), "Qwen3ForCausalLM.*supported are DFlashDraftModel, .*LlamaForCausalLMEagle3"),
        (says_another("target_hidden_size", 48), r"fc.weight \(32, 64\) instead of \(32, 96\)"),
    ],
)
def test_a_draft_that_does_not_fit_is_not_loaded(draft, tiny_folder, plant, words):
    rewrite(draft, plant)
    with pytest.raises(UserError, match=words):
        paired(draft, tiny_folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100], ids=["empty", "zeros"])
def test_a_cut_file_is_refused_in_one_sentence(draft, tiny_folder, file, content):
    (draft / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        paired(draft, tiny_folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_missing_file_is_refused_in_one_sentence(draft, tiny_folder, file):
    (draft / file).unlink()
    with pytest.raises(UserError, match=file):
        paired(draft, tiny_folder)


def test_a_draft_that_lacks_its_settings_is_refused_in_one_sentence(draft, tiny_folder):
    rewrite(draft, lambda w, c: c.pop("dflash_config"))
    with pytest.raises(UserError, match="dflash_config.mask_token_id=None"):
        paired(draft, tiny_folder)


NESTED = {"block_size": B, "mask_token_id": MASK, "target_layer_ids": list(LAYERS)}


def test_a_draft_that_servers_compute_in_another_way_than_we_do_is_refused(draft, tiny_folder):
    """Servers read these keys; a tau that is measured without them is not the server's."""
    rewrite(draft, lambda w, c: c.update({"hidden_act": "gelu"}))
    with pytest.raises(UserError, match="hidden_act"):
        paired(draft, tiny_folder)


@pytest.mark.parametrize("settings", [{"is_causal": True}, {"dflash_config": {**NESTED, "causal": True}}], ids=["top", "nested"])
def test_what_the_config_says_of_a_layers_sight_is_computed(draft, tiny_folder, settings):
    rewrite(draft, lambda w, c: c.update(settings))
    assert paired(draft, tiny_folder).method.sights == (Sight(causal=True),) * 2


@pytest.mark.parametrize("layer_types", [None, ("full_attention", "sliding_attention")])
def test_windows_survive_the_way_through_the_folder(tiny_target, tiny_folder, tmp_path, layer_types):
    method = make_method(tiny_target, sliding_window=5, layer_types=layer_types)
    model = lively(method.skeleton())
    draft = export_checkpoint(save_checkpoint(tmp_path / "checkpoints", method, model, "float32"), tmp_path / "draft")
    pair = paired(draft, tiny_folder)
    assert pair.method.sights == method.sights != make_method(tiny_target).sights
    features = pair.target.capture(answered(pair.target, random_prompt(0, 12), 24))
    anchors = torch.arange(1, 30)
    with torch.no_grad():
        assert torch.equal(pair.method.propose(pair.model, features, anchors), method.propose(model, features, anchors))


@pytest.mark.parametrize("planted", [{"use_sliding_window": False}, {"sliding_window": None}])
def test_a_written_window_that_readers_would_drop_is_no_export(tiny_target, tmp_path, planted):
    method = make_method(tiny_target, sliding_window=5)
    model = lively(method.skeleton())
    draft = export_checkpoint(save_checkpoint(tmp_path / "checkpoints", method, model, "float32"), tmp_path / "draft")
    check_export(draft, load_file(draft / "model.safetensors"))
    rewrite(draft, lambda w, c: c.update(planted))
    with pytest.raises(UserError, match="without which readers drop it"):
        check_export(draft, load_file(draft / "model.safetensors"))


def test_sglang_ignores_the_nested_direction_and_is_said_to(tiny_target):
    method = make_method(tiny_target, sliding_window=5, layer_types=("full_attention", "sliding_attention"))
    check_served("sglang", method)
    method.config.dflash_config["causal"] = False
    with pytest.raises(UserError, match="SGLang ignores dflash_config.causal=False; write is_causal"):
        check_served("sglang", method)
    method.config.is_causal = False
    check_served("sglang", method)


@pytest.mark.parametrize(("dtype", "device"), [("float16", "cpu"), ("float32", "abacus")])
def test_a_precision_or_device_that_is_not_there_is_refused(draft, tiny_folder, dtype, device):
    with pytest.raises(UserError, match="dtype 'float16'|device 'abacus'"):
        load_pair(draft, str(tiny_folder), dtype, device, False)
