"""The z-lab / Hugging Face folder of a draft, which vLLM, SGLang, llama.cpp's converter and the `dflash` package read.

      draft/  config.json (Qwen3 keys, dflash_config) · model.safetensors (tensor names of docs/dflash.md) · torchspec.json (provenance)

No embedding and no head: they are the target's. What was written is read back and compared before the export counts as done.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from torchspec import __version__
from torchspec.checkpoint import read_json, read_weights
from torchspec.errors import ContractError, UserError

WEIGHTS, PROVENANCE = "model.safetensors", "torchspec.json"


def export_checkpoint(checkpoint: Path, out: Path) -> Path:
    """Writes the draft of one iter_NNNNNNN folder into `out`, in the dtype that it was trained to compute in."""
    run = read_json(checkpoint / "run.json")
    dtype = getattr(torch, run["model"]["dtype"])
    weights = {name: value.to(dtype).contiguous() for name, value in read_weights(checkpoint).items()}
    config = serving_config(AutoConfig.from_pretrained(checkpoint), run["model"]["dtype"])
    provenance = {
        "torchspec": __version__,
        "method": run["draft"]["method"],
        "data": read_json(checkpoint / "data.json"),
        "state": read_json(checkpoint / "state.json"),
        "run": run,
    }
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (partial / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
    check_export(partial, weights)
    if out.exists():
        _remove_old_export(out)
    partial.rename(out)
    return out


def serving_config(config: PreTrainedConfig, dtype: str) -> dict:
    """Both spellings of the rotary settings and of the block size: readers differ in which they look for."""
    values = config.to_dict()
    rope = values["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    values["rope_theta"] = rope["rope_theta"]
    values["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    values["dtype"] = dtype
    values.pop("_name_or_path", None)
    return values


def check_export(folder: Path, expected: dict[str, Tensor]) -> None:
    """Reads the folder as a server would and compares: key set, shapes, values, layer ids against the width of fc."""
    written, config = load_file(folder / WEIGHTS), read_json(folder / "config.json")
    if set(written) != set(expected):
        raise ContractError(
            f"{folder}: missing tensors {sorted(set(expected) - set(written))}, unexpected {sorted(set(written) - set(expected))}"
        )
    different = [name for name in expected if written[name].shape != expected[name].shape or not torch.equal(written[name], expected[name])]
    if different:
        raise ContractError(
            f"{folder}: tensors {different[:3]} differ from the checkpoint's; the disk or the writer is at fault, export again"
        )
    layer_ids, width = config["dflash_config"]["target_layer_ids"], config.get("target_hidden_size", config["hidden_size"])
    if sorted(set(layer_ids)) != layer_ids or layer_ids[-1] > config["num_target_layers"] - 2:
        raise ContractError(
            f"{folder}: target_layer_ids {layer_ids} must ascend and end below layer {config['num_target_layers'] - 1}; servers sort them, "
            "so fc would read permuted columns"
        )
    if written["fc.weight"].shape[1] != len(layer_ids) * width:
        raise ContractError(
            f"{folder}: fc takes {written['fc.weight'].shape[1]} features but {len(layer_ids)} layers of width {width} are captured"
        )


def _remove_old_export(out: Path) -> None:
    if not (out / PROVENANCE).is_file():
        raise UserError(f"{out.resolve()} exists and is no export of torchspec (no {PROVENANCE}); choose another folder")
    shutil.rmtree(out)
