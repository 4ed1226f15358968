"""Ranks that stay: processes that train one run after another together, as torchrun's would; what they import is imported once."""

import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

MOST = 4
PATIENCE = 240.0  # seconds for one run


class Ranks:
    """The first `ranks` processes of a pool train together; the others wait."""

    def __init__(self):
        context, self.ends, self.processes = multiprocessing.get_context("forkserver"), [], []
        context.set_forkserver_preload(["torchspec.launch.run", "torchspec.training.loop", "torchspec.training.build"])
        for _ in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self.ends.append(ours)
            self.processes.append(process)

    def train(self, config: Path, ranks: int, *overrides: str, nodes: int = 1) -> None:
        self.start(config, ranks, *overrides, nodes=nodes)
        for error in self.ends_with(ranks):
            assert error is None, error

    def start(self, config: Path, ranks: int, *overrides: str, nodes: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank, end in enumerate(self.ends[:ranks]):
            on_a_node = ranks // nodes
            names = {"RANK": rank, "LOCAL_RANK": rank % on_a_node, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": on_a_node, "MASTER_PORT": port}
            end.send((str(config), (f"training.num_ranks={ranks}", *overrides), {name: str(value) for name, value in names.items()}))

    def ends_with(self, ranks: int) -> list[str | None]:
        """What went wrong in each rank, or who stopped it."""
        said = []
        for rank, end in enumerate(self.ends[:ranks]):
            assert end.poll(PATIENCE), f"rank {rank} of {ranks} is still not done"
            said.append(end.recv())
        return said

    def close(self) -> None:
        for process in self.processes:
            process.kill()


def _serve(end: Connection) -> None:
    import torch

    from torchspec.config import load_config
    from torchspec.errors import Stopped
    from torchspec.launch.run import launch

    torch.set_num_threads(1)
    while True:
        config, overrides, names = end.recv()
        os.environ.update(names | {"MASTER_ADDR": "127.0.0.1"})
        try:
            launch(load_config(config, list(overrides)))
        except Stopped as stop:
            end.send(f"stopped by {stop.number}")
        except Exception:
            end.send(traceback.format_exc())
        else:
            end.send(None)
