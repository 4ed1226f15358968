"""Where an engine leaves a prompt's states: its side of the way to us, inside of its own process.

Whatever touches every value happens before they leave the engine's device: the rounding, and the sizes by which rows are judged.
States reach the asker through a folder of shared memory, on the same node, or over the network from a port of the engine's process.
"""

import json
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from torchspec.capture.feature_port import open_port
from torchspec.files.contents import model_key
from torchspec.nn.staging import to_host
from torchspec.records import row_sizes
from torchspec.target.fetch import resolve_target
from torchspec.transfer.codec import fp8_scales, to_fp8

MARK = "torchspec-"
NAME = re.compile(MARK + "[0-9a-f]{32}")  # of states: only requests that are named so are captured, and nobody guesses another one's
KEPT = 900.0  # seconds after which states that nobody fetched are removed; whoever asks gives up sooner


def new_name() -> str:
    return f"{MARK}{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Delivery:
    """What our piece inside of an engine is told, in the engine's own settings."""

    folder: str  # of shared memory
    layer_ids: list[int]  # z-ids, ascending
    fp8: bool
    shared: bool = False  # a server, whose askers come and go; else an engine of the process that asks
    listen: str | None = None  # host:port from which states are fetched over the network; none opens no port


class Outbox:
    def __init__(self, delivery: Delivery, model: str):
        """model: what the engine has loaded, a folder or a hub id. Only a server names it: an engine was given it by the asker."""
        self.delivery, self.folder = delivery, Path(delivery.folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.origin = {"layer_ids": json.dumps(delivery.layer_ids)}
        if delivery.shared:
            self.origin["target"] = model_key(resolve_target(model))
        if delivery.listen is not None:
            open_port(self.folder, NAME, delivery.listen)

    def put(self, name: str, context: Tensor, last: Tensor) -> None:
        """context [L, K*H_t] and last [H_t] of one prompt, on any device: whole in the folder when this returns, or not at all."""
        if not NAME.fullmatch(name) or not self._has_room(context.nbytes):
            return
        sizes = row_sizes(context, len(self.delivery.layer_ids))
        context = to_fp8(context, fp8_scales(sizes)) if self.delivery.fp8 else context
        states = {"context": context.contiguous(), "sizes": sizes, "last": last.clone()}  # a file refuses tensors that overlap
        partial = self.folder / f".{name}"
        save_file({key: to_host(tensor) for key, tensor in states.items()}, partial, self.origin)
        partial.rename(self.folder / name)

    def _has_room(self, size: int) -> bool:
        """A server outlives its askers: what they left behind goes, and a full folder costs a request its states, not the server."""
        if not self.delivery.shared:
            return True
        for file in self.folder.iterdir():
            if time.time() - file.stat().st_mtime > KEPT:
                file.unlink(missing_ok=True)
        room = shutil.disk_usage(self.folder).free
        if room < 2 * size:
            print(f"torchspec: {self.folder} has {room / 2**20:.0f} MiB left, so no states of {size / 2**20:.0f} MiB are kept", flush=True)
        return room >= 2 * size
