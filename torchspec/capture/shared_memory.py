"""States on their way from an engine's process to ours, on the same node: files in a folder of /dev/shm, written whole or not at all.

Whatever touches every value happens before they leave the engine's device: the rounding, and the sizes by which rows are judged.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from torchspec.errors import ContractError
from torchspec.nn.staging import to_host
from torchspec.records import Features, Prompt, row_sizes
from torchspec.transfer.codec import fp8_scales, to_fp8

ROOT, PREFIX = Path("/dev/shm"), "torchspec-"


def new_folder() -> Path:
    """A folder of this process. Those of processes that were killed are memory that nobody else would free: they go first."""
    for folder in ROOT.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=ROOT))


@dataclass(frozen=True)
class States:
    """What an engine leaves of one prompt."""

    context: Tensor  # [L, K*H_t] outputs of the captured layers, rounded where fp8 is wanted
    sizes: Tensor  # [L, K] of the rows before the rounding
    last: Tensor  # [H_t] the last layer's output for the last token, before the final norm

    def features(self, prompt: Prompt, layer_ids: tuple[int, ...], producer: str) -> Features:
        scales = fp8_scales(self.sizes) if self.context.dtype == torch.float8_e4m3fn else None
        return Features(prompt, self.context, layer_ids, producer, scales).check(self.sizes)


def put(folder: Path, name: str, context: Tensor, last: Tensor, num_layers: int, fp8: bool) -> None:
    """context [L, K*H_t] and last [H_t] of one prompt, on any device."""
    sizes = row_sizes(context, num_layers)
    context = to_fp8(context, fp8_scales(sizes)) if fp8 else context
    states = {"context": context.contiguous(), "sizes": sizes, "last": last.clone()}  # a file refuses tensors that overlap
    partial = folder / f".{name}"
    save_file({key: to_host(tensor) for key, tensor in states.items()}, partial)
    partial.rename(folder / name)


def take(folder: Path, name: str, producer: str) -> States:
    """Read once: the file is gone afterwards, its memory when the tensors are, which are no copies."""
    file = folder / name
    if not file.is_file():
        raise ContractError(f"{producer} answered and left no states in {folder}; its log says what became of the request")
    states = States(**load_file(file))
    file.unlink()
    return states
