"""A draft folder and its target, loaded for inference on one device."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.errors import UserError
from torchspec.fetch import resolve_target
from torchspec.methods.base import Method, method_class
from torchspec.methods.registry import ARCHITECTURES
from torchspec.nn.packed import pack_linears
from torchspec.target import FrozenTarget


@dataclass
class Pair:
    """A target in this process and the draft that speeds it up."""

    draft: Path
    folder: Path  # of the target
    target: HFCapture
    method: Method
    model: nn.Module


DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported; choose {' or '.join(DTYPES)}")
    return DTYPES[name]


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts where a build lacks the backend
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def load_pair(draft: Path, target: str, dtype_name: str, device_name: str, trust_remote_code: bool) -> Pair:
    """Loads an exported draft, checks that it fits the target, and loads the target with the draft's layers captured."""
    dtype, device = resolve_dtype(dtype_name), resolve_device(device_name)
    if not (draft / "config.json").is_file():
        raise UserError(f"draft {str(draft)!r}: {draft.resolve()} holds no config.json; give a folder made by torchspec export")
    try:
        config = AutoConfig.from_pretrained(draft)
    except (OSError, ValueError) as error:
        raise UserError(f"draft {draft}: config.json cannot be read ({error}); export it again") from error
    name = ARCHITECTURES.get((config.architectures or ["none"])[0])
    if name is None:
        raise UserError(f"draft {draft} is a {config.architectures}; supported are {', '.join(ARCHITECTURES)}")
    folder = resolve_target(target)
    frozen = FrozenTarget.load(folder, dtype, device, trust_remote_code)
    method = method_class(name).from_config(config, frozen)
    model = method.skeleton()
    _load_weights(model, draft / "model.safetensors")
    model = pack_linears(cast_parameters(model.to(device), dtype).eval().requires_grad_(False))
    spec = CaptureSpec(folder, method.layer_ids, dtype, device, trust_remote_code=trust_remote_code)
    return Pair(draft, folder, HFCapture(spec), method, model)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters only: `model.to(dtype)` would round the rotary frequencies as well, and serve other positions than were trained."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _load_weights(model: nn.Module, file: Path) -> None:
    """Every tensor must be there, with its shape, and no other: servers skip and zero-fill silently, so nothing may slip here."""
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a readable safetensors file ({error}); export the draft again") from error
    expected = model.state_dict()
    problems = [f"missing {n}" for n in expected.keys() - weights.keys()] + [f"unexpected {n}" for n in weights.keys() - expected.keys()]
    problems += [
        f"{n} {tuple(weights[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in expected.keys() & weights.keys()
        if weights[n].shape != expected[n].shape
    ]
    if problems:
        raise UserError(f"{file} does not fit its config.json: {', '.join(sorted(problems)[:4])}")
    model.load_state_dict(weights)
