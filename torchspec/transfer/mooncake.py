"""Mooncake store: data goes from the worker's memory to the trainer's over TCP or RDMA; only the key travels through Ray.

A key that was just read holds a lease in the master, and `remove` is refused until it ends: such keys are removed later.
"""

import shutil
import socket
import subprocess
import time
import uuid
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from torchspec.config import MooncakeConfig, RunConfig
from torchspec.errors import UserError
from torchspec.transfer.codec import Wire

LEASED = -706  # the store's code for "object has a lease"
START_SECONDS = 20.0


@dataclass(frozen=True)
class Ticket:
    key: str
    wire: Wire  # without its data


class MooncakeTransfer:
    def __init__(self, config: RunConfig):
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            raise UserError(f"inference.transfer=mooncake cannot be loaded ({error}): pip install 'torchspec[mooncake]'") from error
        settings = config.inference.mooncake
        self.store, size = MooncakeDistributedStore(), int(settings.segment_gib * 2**30)
        code = self.store.setup(_own_address(), settings.metadata, size, size, settings.protocol, settings.rdma_device, settings.master)
        if code != 0:
            raise UserError(f"the Mooncake master at {settings.master} does not take this process in (code {code}); is it running?")
        self.leased: deque[str] = deque()

    def put(self, wire: Wire) -> Ticket:
        key = uuid.uuid4().hex
        code = self.store.put(key, wire.data.tobytes())
        if code != 0:
            raise UserError(
                f"Mooncake refused {wire.nbytes / 2**20:.0f} MiB (code {code}); raise inference.mooncake.segment_gib or restart the master"
            )
        return Ticket(key, wire.without_data())

    def get(self, ticket: Ticket) -> Wire:
        data = self.store.get(ticket.key)
        if len(data) != ticket.wire.nbytes:
            raise UserError(f"Mooncake returned {len(data)} of {ticket.wire.nbytes} bytes; was the master restarted?")
        self.leased.append(ticket.key)
        self._remove_what_may_go()
        return replace(ticket.wire, data=np.frombuffer(data, dtype=np.uint8))

    def _remove_what_may_go(self) -> None:
        """Oldest first; the first one that is still leased ends the round. A key that is gone already needs nothing."""
        while self.leased and self.store.remove(self.leased[0]) != LEASED:
            self.leased.popleft()


def start_master(settings: MooncakeConfig) -> tuple[subprocess.Popen, MooncakeConfig]:
    """A master on this machine, and the settings with its addresses."""
    program = shutil.which("mooncake_master")
    if program is None:
        raise UserError("inference.mooncake.master is not set and mooncake_master is not installed: pip install 'torchspec[mooncake]'")
    port, http = _free_port(), _free_port()
    command = [program, f"--rpc_port={port}", "--enable_http_metadata_server=true", f"--http_metadata_server_port={http}"]
    command += ["--default_kv_lease_ttl=1000", f"--metrics_port={_free_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(port, process)
    address = _own_address()
    return process, settings.model_copy(update={"master": f"{address}:{port}", "metadata": f"http://{address}:{http}/metadata"})


def _wait_for(port: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise UserError(f"mooncake_master did not start within {START_SECONDS:.0f} s (exit code {process.poll()}); start it by hand to see why")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _own_address() -> str:
    """The address under which other nodes reach this one."""
    import ray

    return ray.util.get_node_ip_address()
