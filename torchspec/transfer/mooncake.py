"""Mooncake store (tested 0.3.13): data stays in the worker's memory until the trainer pulls it over TCP or RDMA.

Only the key goes through Ray, and a master knows where each key lies. While the master is away, both ends wait; started again
it has forgotten all keys, so what was under way is captured once more.
"""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from torchspec.config import RunConfig
from torchspec.errors import FeaturesLost, TransferDown, UserError
from torchspec.extras import install
from torchspec.transfer.codec import Wire
from torchspec.transfer.config import SYSTEM_LIBRARIES

PATIENCE = 20.0  # seconds without a master, or without room, after which the run stops
PAUSE = 0.2
NO_METADATA_SERVER = "P2PHANDSHAKE"  # the ends exchange their addresses themselves


@dataclass(frozen=True)
class Ticket:
    key: str
    wire: Wire  # without its data


class MooncakeTransfer:
    def __init__(self, config: RunConfig, sends: bool):
        os.environ.setdefault("GLOG_minloglevel", "2")  # errors only; the library reads it when it is loaded
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            raise UserError(f"inference.transfer=mooncake cannot be loaded ({error}): {install('mooncake')}{SYSTEM_LIBRARIES}") from error
        self.settings = config.inference.mooncake
        if self.settings.master is None:
            raise UserError("inference.mooncake.master is not set; only `torchspec train` with Ray Train starts one, torchrun does not")
        size = int(self.settings.segment_gib * 2**30)
        self.store = MooncakeDistributedStore()
        self._insist(lambda: self._join(size, sends), "take this process in")

    def put(self, wire: Wire) -> Ticket:
        key = uuid.uuid4().hex
        self._insist(lambda: self.store.put(key, wire.data), f"take {wire.nbytes / 2**20:.1f} MiB")
        return Ticket(key, replace(wire, data=np.empty(0, dtype=np.uint8)))

    def get(self, ticket: Ticket) -> Wire:
        """The data lies in this end's buffer until it is no longer used."""
        buffer = self.store.get_buffer(ticket.key)
        if buffer is None:
            self._insist(lambda: min(self.store.is_exist(ticket.key), 0), "answer")
            raise FeaturesLost(
                "Mooncake did not deliver the features: their worker died, the master was restarted, or inference.mooncake.segment_gib="
                f"{self.settings.segment_gib:g} is too small"
            )
        self.store.remove(ticket.key, force=True)  # a key that was read is leased to its readers for a while; this was the only one
        return replace(ticket.wire, data=np.frombuffer(buffer, dtype=np.uint8))

    def _join(self, size: int, sends: bool) -> int:
        """Workers lend memory that holds what they captured; trainers lend none."""
        settings = self.settings
        host = own_address(settings.master)
        return self.store.setup(
            host, NO_METADATA_SERVER, size if sends else 0, size, settings.protocol, settings.rdma_device, settings.master
        )

    def _insist(self, attempt: Callable[[], int], wish: str) -> None:
        """Repeats what answers with an error code until it is 0, or patience ends."""
        until = time.monotonic() + PATIENCE
        while (code := attempt()) != 0:
            if time.monotonic() > until:
                raise TransferDown(
                    f"Mooncake did not {wish} for {PATIENCE:.0f} seconds (code {code}); is the master at {self.settings.master} running, "
                    f"and inference.mooncake.segment_gib={self.settings.segment_gib:g} enough?"
                )
            time.sleep(PAUSE)


def own_address(master: str) -> str:
    """The address under which the other ends reach this one."""
    if master.startswith("127.0.0.1:"):
        return "127.0.0.1"
    import ray

    return ray.util.get_node_ip_address()
