"""Which states an SGLang model hands out, and in which form: what its models do differently, apart from the hook that runs inside."""

import pkgutil
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from torchspec.errors import UserError

# convention of --speculative-algorithm -> what a model must have for it. Both count a layer by its output where a model has only the second
SETTERS = {"DFLASH": "set_dflash_layers_to_capture", "EAGLE3": "set_eagle3_layers_to_capture"}


def joined(layers: Sequence[Tensor] | Tensor, last: Tensor, num_layers: int) -> Tensor:
    """The asked layers side by side, [tokens, K*H_t]; the last layer's output [tokens, H_t] is one of them where a method wants it.

    layers: a list of [tokens, H_t], or one tensor [tokens, n*H_t] of models that write them into one buffer (DeepSeek, Kimi).
    """
    if isinstance(layers, Tensor):
        layers = layers.unflatten(-1, (-1, last.shape[-1])).unbind(-2)
    return torch.cat([*layers, last][:num_layers], dim=-1)


def convention(architecture: str, models: str = "sglang.srt.models") -> str:
    """How SGLang is asked for the layers of this model; a model of another package is asked as most are.

    Only the module that defines the model is imported: SGLang's own registry imports all of them, 20 s of a core.
    """
    defines = re.compile(rf"^class {re.escape(architecture)}\(", re.MULTILINE)
    for place in import_module(models).__path__:
        for module in pkgutil.iter_modules([place]):
            file = Path(place) / f"{module.name}.py"
            if file.is_file() and defines.search(file.read_text(encoding="utf-8")):
                return _convention_of(getattr(import_module(f"{models}.{module.name}"), architecture))
    return "DFLASH"


def _convention_of(model: type) -> str:
    for name, setter in SETTERS.items():
        if hasattr(model, setter):
            return name
    raise UserError(f"SGLang's {model.__name__} hands out no layers' states; set inference.inference_engine_type to vllm or hf")
