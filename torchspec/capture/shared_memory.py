"""States that an engine has left for us: as a file in a folder of /dev/shm, or as bytes that came over the network."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from torchspec.errors import ContractError
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import fp8_scales

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
    origin: dict[str, str]  # what they were captured from

    def features(self, prompt: Prompt, layer_ids: tuple[int, ...], producer: str) -> Features:
        scales = fp8_scales(self.sizes) if self.context.dtype == torch.float8_e4m3fn else None
        return Features(prompt, self.context, layer_ids, producer, scales).check(self.sizes)


def take(folder: Path, name: str, producer: str) -> States:
    """Read once: the file is gone afterwards, its memory when the tensors are, which are no copies."""
    file = folder / name
    if not file.is_file():
        raise no_states(producer)
    with safe_open(file, "pt") as states:
        taken = States(**{key: states.get_tensor(key) for key in states.keys()}, origin=states.metadata())  # noqa: SIM118 - no dict
    file.unlink()
    return taken


def parse(data: bytes, producer: str) -> States:
    """The same, from the bytes of such a file: 8 bytes that say how long the header is, the header, the tensors."""
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ContractError(f"what {producer} sent is not whole ({error})") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return States(**tensors, origin=header["__metadata__"])


def no_states(producer: str) -> ContractError:
    return ContractError(f"{producer} answered and left no states; its log says what became of the request")
