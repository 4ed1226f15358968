"""States on their way from an engine's process to ours, on the same node: files in a folder of /dev/shm, written whole or not at all."""

import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from torchspec.errors import ContractError

ROOT, PREFIX = Path("/dev/shm"), "torchspec-"


def new_folder() -> Path:
    """A folder of this process. Those of processes that were killed are memory that nobody else would free: they go first."""
    for folder in ROOT.glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=ROOT))


def put(folder: Path, name: str, states: Tensor) -> None:
    """states [L, K, H_t] of one prompt, from any device."""
    partial = folder / f".{name}"
    save_file({"states": states.cpu().contiguous()}, partial)
    partial.rename(folder / name)


def take(folder: Path, name: str, producer: str) -> Tensor:
    """The states, read once: the file is gone afterwards."""
    file = folder / name
    if not file.is_file():
        raise ContractError(f"{producer} answered and left no states in {folder}; its log says what became of the request")
    states = load_file(file)["states"]
    file.unlink()
    return states
