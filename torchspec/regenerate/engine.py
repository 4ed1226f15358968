"""The servers that answer: an engine, started here on all GPUs for as long as it is needed, or those of somebody else, which must run the
target."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from torchspec.errors import UserError
from torchspec.regenerate.here import Here
from torchspec.regenerate.same_target import check_same_target, check_vocabulary
from torchspec.regenerate.server import Server
from torchspec.regenerate.servers import Servers
from torchspec.regenerate.turns import Turns
from torchspec.serve.engines import ENGINES
from torchspec.serve.options import Serving
from torchspec.serve.records import Load, Served
from torchspec.serve.server import device_shares, open_servers


@contextmanager
def started(turns: Turns, serving: Serving, dtype: str, in_flight: int, gpus: int, folder: Path) -> Iterator[Servers]:
    """As many servers as the GPUs at hand make, `gpus` of them for one. folder: for their logs, and for the file of the target where the
    engine needs one."""
    engine, served = ENGINES[serving.engine], Served.target_alone(turns.target, dtype)
    if turns.room is None:
        raise UserError("the target names no number of positions; give --max-length, the most tokens of a prompt with its answer")
    shares = device_shares(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"), gpus)
    loaded = engine.files(served, serving, folder / "gguf")
    arguments = [*engine.arguments(loaded, Load(in_flight, turns.room)), *([] if gpus == 1 else engine.tensor_parallel(gpus))]
    with open_servers(engine, arguments, serving, folder, shares) as clients:
        yield Servers(turns, [Server.at(client.url, turns.target, in_flight) for client in clients], in_flight)


def running(turns: Turns, urls: list[str], in_flight: int, here: Here | None) -> Servers:
    """Servers of somebody else; none is asked for a row before it is known to run the target.

    here: the target, whose own choice their next tokens must be; None compares the vocabularies alone.
    """
    servers = Servers(turns, [Server.at(url, turns.target, in_flight) for url in urls], in_flight)
    for server in servers.servers:
        check_vocabulary(server, turns)
    if here is not None:
        for server in servers.servers:
            check_same_target(server, servers, here.target.model)
    return servers
