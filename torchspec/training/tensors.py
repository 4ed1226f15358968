"""The tensors of a checkpoint, through PyTorch's distributed checkpoint (DCP) in its safetensors form, whole or sharded."""

import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from torchspec.errors import UserError
from torchspec.files.finite import check_finite
from torchspec.training.checkpoints import LATEST

# DCP says so at every save and load of a single process, which is a mode of its own here
warnings.filterwarnings("ignore", ".*assuming the intent is to (save|load) in a single process", UserWarning)


def tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of a run under one name each; sharded ones stay sharded."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"optimizer/{names[parameter]}/{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    return {f"model/{name}": value for name, value in model.state_dict().items()} | moments


def read_weights(path: Path) -> dict[str, Tensor]:
    """The whole float32 masters of a checkpoint, whatever number of ranks wrote it; needs no process group."""
    _check_shards(path)
    metadata = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    weights = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in metadata.items() if name.startswith("model/")}
    _read_tensors(path, weights, alone=True)
    check_finite(weights, path, "take an older checkpoint")
    return {name.removeprefix("model/"): value for name, value in weights.items()}


def fill(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], alone: bool) -> None:
    """Weights and moments in place. alone: this process is the only rank."""
    _check_shards(path)
    _make_moments(optimizers)
    wanted = tensors(model, optimizers)
    _read_tensors(path, wanted, alone)
    check_finite(wanted, path, f"resume from an older checkpoint: write its step into {LATEST}")


def _check_shards(path: Path) -> None:
    shards = sorted(path.glob("shard-*.safetensors"))
    if not shards:
        raise UserError(f"{path.resolve()} holds no weights (no shard-*.safetensors); give a checkpoint folder iter_NNNNNNN")
    for shard in shards:
        try:
            safe_open(shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard} is not a readable safetensors file ({error}); resume from an older checkpoint") from error


def _read_tensors(path: Path, wanted: dict[str, Tensor], alone: bool) -> None:
    try:
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
    except CheckpointException as error:
        raise UserError(
            f"{path} lacks tensors, a shard-*.safetensors may be missing ({error.failures}); use an older checkpoint"
        ) from error


def _make_moments(optimizers: list[torch.optim.Optimizer]) -> None:
    """Optimizers make their moments in the first step: one of rate zero makes them, to be filled by the load that follows."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
