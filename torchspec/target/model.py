"""The target's own class in Transformers: with its weights, and without its layers, which leaves what a draft shares with it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from torchspec.errors import UserError
from torchspec.target.files import plain_tensors, tensor_files


def read_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The whole one; a target that also sees images keeps its text model's inside."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise UserError(f"target {folder}: config.json cannot be read ({_line(error)}); fetch it again") from error
    except ValueError as error:  # a model type that it does not know, or one that comes with code of its own
        raise UserError(
            f"target {folder}: Transformers {transformers.__version__} does not read its config.json ({_line(error)}); "
            "upgrade it, or set model.trust_remote_code=true if you trust the code that comes with this target"
        ) from error


def load_config(folder: Path, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The text model's."""
    return read_config(folder, trust_remote_code).get_text_config()


def load_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """With all its weights, on the host."""
    config = read_config(folder, trust_remote_code)
    check_dtype(folder, config, dtype)
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    try:
        model, loading = _auto_class(folder, config).from_pretrained(folder, **options)
    except (ImportError, ValueError) as error:
        raise _not_loaded(folder, error) from error
    check_complete(folder, loading["missing_keys"])  # Transformers fills them with random numbers
    return model


def load_without_layers(folder: Path, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The same class, whose text model has no layer and whose other parts are gone: embedding, final norm, head and little else.

    Memory is theirs, since nothing else is read from the files.
    """
    config = copy.deepcopy(read_config(folder, trust_remote_code))
    check_dtype(folder, config, dtype)
    tensors = plain_tensors(folder)
    try:
        with torch.device("meta"):
            whole = _auto_class(folder, config).from_config(config, trust_remote_code=trust_remote_code)
        kind, config = type(whole), whole.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # what is left has plain weights, or is refused
        with _no_progress_bar():
            model, loading = _without_layers(kind).from_pretrained(
                None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
            )
    except (ImportError, ValueError) as error:
        raise _not_loaded(folder, error) from error
    check_complete(folder, loading["missing_keys"])
    return model.eval().requires_grad_(False)


def decoder_of(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the text model's layers, and the layers."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, child
    raise UserError(f"{type(model).__name__} keeps its {count} decoder layers in no ModuleList; a target of this class is not supported")


def _without_layers(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    def __init__(self, config, *args, **kwargs):
        kind.__init__(self, config, *args, **kwargs)
        decoder, layers = decoder_of(self)
        del layers[:]
        _drop_all_but(self, (decoder, self.get_output_embeddings()))
        self.post_init()  # lists the parts that are tied, of those that are left

    own = {"__init__": __init__, "__module__": kind.__module__, "_keys_to_ignore_on_load_unexpected": [".*"]}
    return type(kind.__name__, (kind,), own)


def _drop_all_but(module: nn.Module, kept: tuple[nn.Module, ...]) -> None:
    """Vision towers and projectors have no part in what becomes of text."""
    for name, child in list(module.named_children()):
        if child in kept:
            continue
        if any(part in kept for part in child.modules()):
            _drop_all_but(child, kept)
        elif any(True for _ in child.parameters()):
            setattr(module, name, nn.Identity())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Three tensors are no wait."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _auto_class(folder: Path, config: PreTrainedConfig):
    """Which of Transformers' doors leads to the target's class."""
    own_code = "AutoModelForCausalLM" in (config.to_dict().get("auto_map") or {})
    if own_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(
        f"target {folder}: Transformers {transformers.__version__} has no {config.model_type} that goes on with a text; "
        "give a causal language model"
    )


def check_dtype(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> None:
    quantised = config.to_dict().get("quantization_config") or config.get_text_config().to_dict().get("quantization_config")
    if quantised and dtype == torch.float32:
        method = quantised.get("quant_method", "its own way")
        raise UserError(f"target {folder} is quantised ({method}) and does not compute in float32; set model.dtype=bfloat16")


def check_complete(folder: Path, missing: set[str]) -> None:
    if not missing:
        return
    name = sorted(missing)[0]
    beside = sorted(stored for stored in tensor_files(folder) if stored.startswith(name.removesuffix("weight")))
    if beside:
        raise UserError(f"target {folder} keeps {name} quantised ({', '.join(beside)}); give a checkpoint that leaves it in 16 bits")
    raise UserError(f"target {folder} lacks the weights {sorted(missing)[:3]}; fetch it again")


def _not_loaded(folder: Path, error: Exception) -> UserError:
    return UserError(f"target {folder}: Transformers {transformers.__version__} does not load it ({_line(error)})")


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
