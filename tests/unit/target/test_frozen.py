"""The frozen parts of a target, read from its files alone: right tensors whatever the layout, one sentence when one is missing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.unit.tiny import random_prompt, write_target
from torchspec.errors import UserError
from torchspec.target.frozen import FrozenTarget


def shard(folder, names_of) -> None:
    """Splits model.safetensors: `names_of(name)` -> file."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: names_of(name) for name in weights}
    for file in set(where.values()):
        save_file({n: w for n, w in weights.items() if where[n] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def by_name(name: str) -> str:
    return f"model-0000{1 + len(name) % 3}-of-00003.safetensors"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_norm_and_head_over_the_last_state_are_the_models_own_logits(tmp_path, tied, sharded):
    folder = write_target(tmp_path / "target", tied=tied)
    if sharded:
        shard(folder, by_name)
    model, kept = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
    model.model.layers[-1].register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    logits = model(random_prompt(0, 20)[None]).logits[0]
    target = FrozenTarget.load(folder, torch.float32)
    torch.testing.assert_close(target.logits(kept[0].view(20, -1)), logits, rtol=1e-5, atol=1e-4)
    assert torch.equal(target.embedding, model.get_input_embeddings().weight) and torch.equal(target.norm.weight, model.model.norm.weight)
    assert (target.head is target.embedding) == tied and target.num_layers == 6


def test_real_logits_in_bfloat16_are_the_models_within_a_rounding(target_folder):
    """Same operations in the same precision; the head of this target is its embedding."""
    model, kept = AutoModelForCausalLM.from_pretrained(target_folder, dtype=torch.bfloat16), []
    model.model.layers[-1].register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.inference_mode():
        logits = model(torch.arange(100, 130)[None]).logits[0]
        ours = FrozenTarget.load(target_folder, torch.bfloat16).logits(kept[0].view(30, -1))
    assert torch.equal(ours.argmax(-1), logits.argmax(-1))
    torch.testing.assert_close(ours, logits, rtol=2**-7, atol=2**-5)  # a rounding of a norm's float32 mean may go the other way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_in_the_asked_precision(tiny_folder, dtype):
    target, exact = FrozenTarget.load(tiny_folder, dtype), FrozenTarget.load(tiny_folder, torch.float32)
    for ours, full in ((target.embedding, exact.embedding), (target.head, exact.head), (target.norm.weight, exact.norm.weight)):
        assert torch.equal(ours, full.to(dtype)) and ours.dtype == dtype


def test_tensors_of_layers_and_of_a_vision_tower_are_not_mistaken_for_the_models_own(tiny_folder, tmp_path):
    folder = tmp_path / "target"
    shutil.copytree(tiny_folder, folder)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.layers.0.self_attn.norm.weight", "model.visual.norm.weight", "vision_tower.vision_model.norm.weight"):
        weights[name] = torch.full((32,), 9.0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(FrozenTarget.load(folder, torch.float32).norm.weight, weights["model.norm.weight"])


@pytest.fixture
def folder(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "target")
    return tmp_path / "target"


def refused(folder) -> str:
    with pytest.raises(UserError) as error:
        FrozenTarget.load(folder, torch.float32)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(folder, name):
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks the weights ['{name}']" in refused(folder)


def test_an_untied_target_without_its_head_is_refused(folder):
    """The config says that head and embedding differ: the embedding is no substitute."""
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in refused(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_an_empty_or_cut_file_is_named_with_its_size(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} ({file.stat().st_size} bytes) is not a readable safetensors file" in refused(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor model.safetensors.index.json; only safetensors weights are read" in refused(folder)


def test_a_shard_that_was_not_fetched_is_named(folder):
    shard(folder, by_name)
    file = folder / by_name("model.embed_tokens.weight")
    file.unlink()
    assert f"{file} (no bytes) is not a readable safetensors file" in refused(folder)


def test_a_shard_without_the_tensor_that_the_index_promises_is_refused(folder):
    shard(folder, by_name)
    file = folder / by_name("model.norm.weight")
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file)
    assert "model.norm.weight" in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_an_index_that_is_cut_is_refused(folder, content):
    shard(folder, by_name)
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("content", ["", "{"])
def test_a_config_that_is_cut_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refused(folder)
