"""A draft's bare tensors in one .pt file: a dict name -> tensor that `torch.load(file, weights_only=True)` reads."""

from pathlib import Path

import torch

from torchspec.checkpoint import read_json, read_weights
from torchspec.errors import ContractError
from torchspec.export.hf import serving_tensors


def export_tensors(checkpoint: Path, out: Path) -> Path:
    """The tensors of `torchspec export`, with its names and in its dtype, read back and compared."""
    weights = serving_tensors(read_weights(checkpoint), read_json(checkpoint / "run.json")["model"]["dtype"])
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    torch.save(weights, partial)
    written = torch.load(partial, weights_only=True)
    different = [name for name in weights.keys() | written.keys() if name not in written or not torch.equal(weights[name], written[name])]
    if different:
        raise ContractError(f"{out}: tensors {different[:3]} differ from the checkpoint's; the disk is at fault, export again")
    partial.rename(out)
    return out
