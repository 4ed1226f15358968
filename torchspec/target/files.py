"""The tensors of a target's folder, mapped from disk and not copied."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchspec.errors import UserError

PLAIN = (torch.float32, torch.bfloat16, torch.float16)  # whatever else is stored is quantised, or no weight


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or from its single file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{index} is damaged ({error!r}); fetch it again") from error
    if not single.is_file():
        raise UserError(f"target {folder} holds neither {single.name} nor {index.name}; only safetensors weights are read")
    with _open(single) as tensors:
        return dict.fromkeys(tensors.keys(), single)


def plain_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder that is stored as ordinary numbers: views of the files, of which only what is used gets read."""
    names, found = tensor_files(folder), {}
    for file in sorted(set(names.values())):
        with _open(file) as tensors:
            held = set(tensors.keys())
            lacking = [name for name, where in names.items() if where == file and name not in held]
            if lacking:
                raise UserError(f"{file} lacks {lacking[0]}, which the index says it holds; fetch it again")
            found |= {name: tensor for name in held if (tensor := tensors.get_tensor(name)).dtype in PLAIN}
    return found


def _open(file: Path):
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size if file.exists() else "no"
        raise UserError(f"{file} ({size} bytes) is not a readable safetensors file ({error}); fetch it again") from error
