"""A server for as long as it is needed: started here on the loopback interface, or somebody else's by its URL."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests

from torchspec.console import console
from torchspec.errors import UserError
from torchspec.serve.client import Client
from torchspec.serve.engines import Engine
from torchspec.serve.options import Serving
from torchspec.transfer.mooncake_master import free_port

LOOPBACK = "127.0.0.1"
START_PATIENCE = 1200.0  # seconds: large targets load for minutes
STOP_PATIENCE = 30.0
NAMED_ERROR = re.compile(r"\w*(Error|Exception): .+")


@contextmanager
def open_server(name: str, engine: Engine, arguments: list[str], serving: Serving, log: Path) -> Iterator[Client]:
    """name: for readers, as in `vllm with the draft`. The server and all its processes end with the block."""
    with _process(name, engine, arguments, serving, log, {}) as (server, url):
        _wait(server, url, name, log)
        yield engine.client(url, f"its log is {log}")


@contextmanager
def open_servers(engine: Engine, arguments: list[str], serving: Serving, folder: Path, shares: list[str | None]) -> Iterator[list[Client]]:
    """One for each share of the GPUs, as `device_shares` gives them, all loading at the same time. folder: for their logs."""
    with ExitStack() as stack:
        started = []
        for n, share in enumerate(shares):
            log, devices = folder / f"server-{n}.log", {} if share is None else {"CUDA_VISIBLE_DEVICES": share}
            server, url = stack.enter_context(_process(serving.engine, engine, arguments, serving, log, devices))
            started.append((server, url, serving.engine, log))
        for each in started:
            _wait(*each)
        yield [engine.client(url, f"its log is {log}") for _, url, _, log in started]


def device_shares(count: int, visible: str | None, each: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of as many servers as `count` GPUs make, `each` of them for one. visible: that of this process. Without GPUs it
    is one server, of which nothing is asked."""
    if each > max(count, 1):
        raise UserError(f"--gpus-per-server {each} is more than the {count} GPUs at hand; give less")
    if count == 0:
        return [None]
    names = visible.split(",") if visible else [str(n) for n in range(count)]
    return [",".join(names[start : start + each]) for start in range(0, count - each + 1, each)]


@contextmanager
def _process(
    name: str, engine: Engine, arguments: list[str], serving: Serving, log: Path, devices: dict[str, str]
) -> Iterator[tuple[subprocess.Popen, str]]:
    """It and its URL, from before it answers."""
    port, start = free_port(LOOPBACK), engine.command(serving)
    command = [*start, *arguments, "--host", LOOPBACK, "--port", str(port), *shlex.split(serving.arguments)]
    tools = {"PATH": f"{Path(start[0]).parent}{os.pathsep}{os.environ['PATH']}"}  # engines compile with their own
    console.print(f"starting {name}: {shlex.join(command)}", markup=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        try:
            server = subprocess.Popen(command, env=os.environ | tools | devices, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise UserError(f"{start[0]} cannot be run ({error}); give the Python of the engine's environment") from error
        try:
            yield server, f"http://{LOOPBACK}:{port}"
        finally:
            _stop(server)


@contextmanager
def running_server(engine: Engine, url: str) -> Iterator[Client]:
    yield engine.client(url.rstrip("/"), "is a server running there?")


def _stop(server: subprocess.Popen) -> None:
    """The server and its processes: first asked, then killed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(STOP_PATIENCE)
        except ProcessLookupError:  # nothing of it is left
            return
        except subprocess.TimeoutExpired:
            continue


def _wait(server: subprocess.Popen, url: str, name: str, log: Path) -> None:
    started = time.monotonic()
    while not _healthy(url):
        if server.poll() is not None:
            raise UserError(f"{name} ended while it started (exit code {server.returncode}): {_last_words(log)}; its log is {log}")
        if time.monotonic() - started > START_PATIENCE:
            raise UserError(f"{name} did not answer within {START_PATIENCE:.0f} s; its log is {log}")
        time.sleep(0.1)
    console.print(f"{name} answers after {time.monotonic() - started:.0f} s", markup=False)


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).status_code == 200
    except requests.RequestException:  # not listening yet
        return False


def _last_words(log: Path) -> str:
    """The last line that names an error of its own, where engines end with one that points to another's; or the last line."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()] or ["it said nothing"]
    named = [found.group() for line in lines if "root cause" not in line and (found := NAMED_ERROR.search(line))]
    return (named or lines)[-1]
