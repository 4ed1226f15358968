"""A converted file is read back, against files whose contents are known; and drafts that llama.cpp would serve otherwise are refused."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.unit.tiny import lively, make_eagle3, make_method
from torchspec.errors import ContractError, UserError
from torchspec.export.hf import serving_tensors
from torchspec.export.llamacpp import LlamaCpp
from torchspec.export.read_gguf import check_draft
from torchspec.methods.base import check_served

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


def convert(file, facts: dict, tensors: dict, dtype: str) -> None:
    """As llama.cpp's converter: names and rows of its own, norms in float32, ids of the target, no t2d."""
    writer = gguf.GGUFWriter(file, "dflash")
    for key, value in facts.items():
        if key != "general.architecture":
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
            add(key, value)
    for number, (name, value) in enumerate(t for t in tensors.items() if t[0] != "t2d"):
        if name == "d2t":
            writer.add_tensor("d2t", (value + torch.arange(len(value))).numpy())
        elif value.ndim == 1 or dtype == "float32":
            writer.add_tensor(f"t{number}.weight", value.float().flip(0).numpy())
        else:
            bits = value.bfloat16().flip(0).contiguous().view(torch.int16).numpy().view(np.uint8)
            writer.add_tensor(f"t{number}.weight", bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def converted(request, tiny_target, tmp_path_factory):
    method = make_method(tiny_target)
    model = lively(method.build(torch.Generator().manual_seed(0)))
    tensors = serving_tensors(model.state_dict(), request.param)
    tensors["d2t"], tensors["t2d"] = torch.tensor([0, 3, 3]), torch.tensor([True])  # as a draft with a vocabulary of its own has them
    file, facts = tmp_path_factory.mktemp("gguf") / "draft.gguf", method.gguf_facts(method.config)
    convert(file, facts, tensors, request.param)
    return file, facts, tensors


def test_a_faithful_file_is_read_back(converted):
    check_draft(*converted)


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [
        (lambda t: t["fc.weight"][0, 0].add_(1), "1 of .* exported tensors are not in it with their values, and 1 of its own are new"),
        (lambda t: t.update({"more.weight": torch.ones(2)}), "1 of .* exported tensors are not in it with their values, and 0 of its own"),
        (lambda t: t.pop("norm.weight"), "0 of .* exported tensors are not in it"),
        (lambda t: t["d2t"][1].add_(1), "its map of the draft's vocabulary is not the export's"),
    ],
)
def test_another_draft_is_noticed(converted, planted, sentence):
    file, facts, tensors = converted
    changed = {name: value.clone() for name, value in tensors.items()}
    planted(changed)
    with pytest.raises(ContractError, match=sentence):
        check_draft(file, facts, changed)


@pytest.mark.parametrize("key", ["general.architecture", "dflash.block_size", "dflash.target_layers", "tokenizer.ggml.mask_token_id"])
def test_a_setting_that_differs_is_noticed(converted, key):
    file, facts, tensors = converted
    with pytest.raises(ContractError, match=f"says {key}="):
        check_draft(file, {**facts, key: None}, tensors)


@pytest.mark.parametrize(
    ("rope", "sentence"),
    [
        (LLAMA3, "converter leaves llama3 scaling of RoPE out, train it with draft.rope=plain"),
        ({**LLAMA3, "rope_type": "longrope"}, "leaves longrope scaling"),
        ({**YARN, "truncate": False}, "no truncate and no mscale of YaRN"),
        ({**YARN, "mscale": 0.7}, "no truncate and no mscale of YaRN"),
        (YARN, None),
    ],
)
def test_rotations_that_llamacpp_drops(tiny_target, rope, sentence):
    method = make_method(tiny_target)
    method.config.rope_parameters = rope
    refused_alone(method, sentence)


def test_drafts_of_blocks_that_llamacpp_computes_otherwise(tiny_target):
    mixed = make_method(tiny_target, sliding_window=5, layer_types=("full_attention", "sliding_attention"))
    refused_alone(mixed, "lets all layers look both ways where some slide")
    refused_alone(make_method(tiny_target, sliding_window=5), None)
    narrow = make_method(tiny_target)
    narrow.config.target_hidden_size = narrow.config.hidden_size + 1
    refused_alone(narrow, "reads no target_hidden_size")
    method = make_method(tiny_target)
    assert "multiplies a Gemma" in method.llamacpp_traps(method.config, "gemma3_text")[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"norm_output": True}, "llama.cpp has no norm_output, train it with draft.norm_output=false"),
        ({"fc_norm": True}, "llama.cpp has no fc_norm"),
        ({"target_layer_ids": (1, 3)}, r"takes three captured layers and this draft has \[1, 3\]"),
        ({"norm_before_residual": True, "target_layer_ids": (0, 1, 3)}, None),
    ],
)
def test_eagle3_drafts_that_llamacpp_computes_otherwise(tiny_target, options, sentence):
    refused_alone(make_eagle3(tiny_target, **options), sentence)


def refused_alone(method, sentence: str | None) -> None:
    check_served("vllm", method)
    if sentence is None:
        check_served("llamacpp", method)
    else:
        with pytest.raises(UserError, match=f"cannot be served with llamacpp: .*{sentence}"):
            check_served("llamacpp", method)


def test_a_converter_that_fails_is_quoted(tmp_path):
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sys; sys.exit('no such architecture')")
    said = "converter failed on m .exit code 1.: no such architecture; its command was .*python3 .*--outtype bf16"
    with pytest.raises(UserError, match=said):
        LlamaCpp.at(str(tmp_path)).convert(Path("m"), tmp_path / "o.gguf", "bfloat16", "python3", tmp_path)
