"""A draft folder as it lies on disk: config.json as a dict, and all tensors, from safetensors or a pickle that can hold nothing else."""

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from torchspec.errors import UserError
from torchspec.files.finite import check_finite

SINGLE, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = f"{SINGLE}.index.json"
MASK_EMBEDDING = "mask_embedding.pt"


def read_config(folder: Path) -> dict:
    values = _json(folder / "config.json")
    if not isinstance(values, dict):
        raise UserError(f"draft {folder}: config.json holds no settings but {type(values).__name__}; fetch it again")
    return values


def weight_files(folder: Path) -> list[Path]:
    """Every file whose content decides what the draft proposes."""
    extra = [file for file in [folder / MASK_EMBEDDING] if file.is_file()]
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        try:
            return [folder / name for name in sorted(set(index["weight_map"].values()))] + extra
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{folder / INDEX} is damaged ({error!r}); fetch it again") from error
    for name in (SINGLE, PICKLE):
        if (folder / name).is_file():
            return [folder / name, *extra]
    raise UserError(f"draft {folder} holds none of {SINGLE}, {INDEX} and {PICKLE}; fetch its weights")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in weight_files(folder):
        if file.name == MASK_EMBEDDING:
            continue
        found = unpickle(file) if file.name == PICKLE else _safetensors(file)
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise UserError(f"{file} is no mapping of names to tensors; fetch it again, or save the draft's state_dict alone")
        check_finite(found, file, "such a draft proposes nothing; export or fetch it again")
        tensors |= found
    return tensors


def unpickle(file: Path):
    """Tensors and plain containers only: nothing in the file is executed."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{file} is not a readable file of tensors ({str(error).splitlines()[0]}); fetch it again") from error


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file ({error}); fetch or export the draft again") from error


def _json(file: Path):
    try:
        return json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch or export it again") from error
