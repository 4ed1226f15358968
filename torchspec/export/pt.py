"""A draft's bare tensors in one .pt file: a dict name -> tensor that `torch.load(file, weights_only=True)` reads."""

from pathlib import Path

import torch
from torch import Tensor

from torchspec.errors import ContractError
from torchspec.export.hf import serving_tensors
from torchspec.files.whole import whole
from torchspec.files.writing import writing
from torchspec.training.checkpoint import read_json
from torchspec.training.tensors import read_weights


def export_tensors(checkpoint: Path, out: Path) -> Path:
    """The tensors of `torchspec export`, with its names and in its dtype, read back and compared."""
    with writing(out, "torchspec export", lambda: f"{out} is as it was before"):
        return _export(checkpoint, out)


def _export(checkpoint: Path, out: Path) -> Path:
    weights = serving_tensors(read_weights(checkpoint), read_json(checkpoint / "run.json")["model"]["dtype"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as partial:
        _save(weights, partial)
        written = torch.load(partial, weights_only=True)
        different = [
            name for name in weights.keys() | written.keys() if name not in written or not torch.equal(weights[name], written[name])
        ]
        if different:
            raise ContractError(f"{out}: tensors {different[:3]} differ from the checkpoint's; the disk is at fault, export again")
    return out


def _save(weights: dict[str, Tensor], file: Path) -> None:
    try:
        with file.open("wb") as sink:
            torch.save(weights, sink)
    except RuntimeError as error:  # of PyTorch's writer, which hides why the file took no more
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
