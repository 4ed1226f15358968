"""Who answers: Transformers in this process, an engine that is started here, or servers that run already."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torchspec.regenerate.here import Here
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.turns import Answering, Turns
from torchspec.serve.options import check_client, target_serving


@dataclass(frozen=True)
class Engine:
    name: str  # hf, or of serve/engines.py
    servers: list[str]  # URLs, in the place of an engine
    in_flight: int  # requests at a time, of each server
    check: bool  # the servers' next tokens against the target's own
    batch_size: int  # of hf
    python: str | None  # interpreter of the environment that holds the engine; none: this one
    arguments: str  # further ones of a started engine, as in a shell
    llamacpp: str | None  # folder of the llama.cpp that converts and serves
    gpus_per_server: int  # of a started engine


@contextmanager
def open_answering(turns: Turns, engine: Engine, here: Here, out: Path) -> Iterator[Answering]:
    """out: the file of the answers; a started engine keeps its log beside it."""
    if engine.name == "hf" and not engine.servers:
        yield Regenerator(turns, here.target.model, engine.batch_size)
        return
    if engine.servers:
        check_client("--server")
        from torchspec.regenerate.engine import running  # its client is an extra

        yield running(turns, engine.servers, engine.in_flight, here if engine.check else None)
        return
    serving = target_serving(engine.name, engine.python, engine.arguments, engine.llamacpp)
    from torchspec.regenerate.engine import started

    dtype = str(here.dtype).removeprefix("torch.")
    with started(turns, serving, dtype, engine.in_flight, engine.gpus_per_server, out.with_name(f"{out.name}.engine")) as servers:
        yield servers
