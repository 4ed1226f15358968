"""The Hugging Face folder of a draft, which vLLM, SGLang, llama.cpp's converter and the method's own package read.

      draft/  config.json · model.safetensors (keys and tensor names of docs/METHOD.md) · torchspec.json (provenance) · README.md

No embedding and no whole head: they are the target's. What was written is read back and compared before the export counts as done.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from torchspec import __version__
from torchspec.console import console
from torchspec.errors import ContractError
from torchspec.export.card import CARD, card
from torchspec.export.commands import serve_commands
from torchspec.export.folder import new_folder
from torchspec.files.writing import writing
from torchspec.methods.base import method_class
from torchspec.methods.registry import method_of
from torchspec.training.checkpoint import read_json
from torchspec.training.evaluated import evaluation_of
from torchspec.training.tensors import read_weights

WEIGHTS, PROVENANCE = "model.safetensors", "torchspec.json"


def export_checkpoint(checkpoint: Path, out: Path) -> Path:
    """Writes the draft of one iter_NNNNNNN folder into `out`, in the dtype that it was trained to compute in."""
    with writing(out, "torchspec export", lambda: f"{out} is as it was before"):
        return _export(checkpoint, out)


def _export(checkpoint: Path, out: Path) -> Path:
    run = read_json(checkpoint / "run.json")
    weights = serving_tensors(read_weights(checkpoint), run["model"]["dtype"])
    saved = AutoConfig.from_pretrained(checkpoint)
    method = method_class(run["draft"]["method"])
    for trap in (*method.sglang_traps(saved, None), *method.vllm_traps(saved)):
        console.print(f"not for every engine: {trap}", markup=False)
    config = serving_config(saved, run["model"]["dtype"])
    provenance = {
        "torchspec": __version__,
        "method": run["draft"]["method"],
        "data": read_json(checkpoint / "data.json"),
        "state": read_json(checkpoint / "state.json"),
        "run": run,
    }
    lines = serve_commands(saved, "DRAFT", "TARGET")
    words = card(method.draft_tokens(saved), provenance, evaluation_of(checkpoint), lines)
    return write_draft(out, weights, config, provenance, words)


def write_draft(out: Path, weights: dict[str, Tensor], config: dict, provenance: dict, words: str | None = None) -> Path:
    """The folder is complete and read back, or absent; an older export in its place goes. words: of its README.md."""
    with new_folder(out, PROVENANCE) as partial:
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (partial / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        if words is not None:
            (partial / CARD).write_text(words, encoding="utf-8")
        check_export(partial, weights)
    return out


def serving_tensors(weights: dict[str, Tensor], dtype_name: str) -> dict[str, Tensor]:
    """A draft's tensors as they are served; maps of token ids stay integers."""
    dtype = getattr(torch, dtype_name)
    return {name: (value.to(dtype) if value.is_floating_point() else value).contiguous() for name, value in weights.items()}


def serving_config(config: PreTrainedConfig, dtype: str) -> dict:
    """Both spellings of the rotary settings and of the block size, and of the head's: readers differ in which they look for. A draft in the
    format of speculators has its layers' settings a second time, where vLLM looks for them if the top names no model_type.
    """
    values = config.to_dict()
    values |= method_class(method_of(values)).repeated(values)
    rope = values["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    values["rope_theta"] = rope["rope_theta"]
    values["rope_scaling"] = None if rope["rope_type"] == "default" else scaling
    values["dtype"] = dtype
    values.pop("_name_or_path", None)
    if "speculators_config" in values:
        values["transformer_layer_config"] = {key: value for key, value in values.items() if not key.startswith("speculators_")}
        del values["model_type"]
    return values


def check_export(folder: Path, expected: dict[str, Tensor]) -> None:
    """Reads the folder as a server would and compares: key set, shapes, values, and what the method's readers rely on."""
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
    method_class(method_of(config)).check_folder(folder, config, written)
