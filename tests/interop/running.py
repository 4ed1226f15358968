"""Servers that already run: started by the very commands that torchspec tells its user, on CPU."""

import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop.conftest import ENGINES, environment
from torchspec.capture.base import CaptureSpec
from torchspec.capture.server import wanted_delivery
from torchspec.capture.sglang import server as sglang
from torchspec.capture.sglang.settings import asked_layers
from torchspec.capture.vllm import server as vllm

START = 500.0  # seconds until a server that does not answer counts as hanging; another one starts beside it
OTHERS = socket.gethostname()  # this machine as other nodes know it
ON_CPU = {
    "sglang": "--device cpu --attention-backend torch_native --sampling-backend pytorch --mem-fraction-static 0.3 --max-total-tokens 8192",
    "vllm": "",
}


def command(engine: str, spec: CaptureSpec, url: str) -> str:
    delivery = wanted_delivery(spec, url, None)
    if engine == "vllm":
        return vllm.command(spec, url, delivery)
    return sglang.command(spec, url, asked_layers(spec), delivery)


@contextmanager
def running(engine: str, spec: CaptureSpec, urls: list[str], folder: Path) -> Iterator[list[subprocess.Popen]]:
    """One server for each URL, all started together; each may be killed by `kill`."""
    servers = [start(engine, command(engine, spec, url), folder / f"server-{i}") for i, url in enumerate(urls)]
    try:
        until = time.monotonic() + START
        for i, (server, url) in enumerate(zip(servers, urls, strict=True)):
            while not healthy(url):
                log = folder / f"server-{i}" / "log"
                assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.5)
        yield servers
    finally:
        for server in servers:
            kill(server)


def start(engine: str, words: str, folder: Path) -> subprocess.Popen:
    folder.mkdir(parents=True)
    first, *rest = shlex.split(f"{words} {ON_CPU[engine]}")
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [str(ENGINES[engine].with_name(first)), *rest], env=environment(engine) | {"HOME": str(folder)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def kill(server: subprocess.Popen) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def healthy(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except OSError:  # not listening yet
        return False
