"""A Mooncake master for one run, started again whenever it dies."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.extras import install

START_SECONDS = 20.0


@contextmanager
def run_master(config: RunConfig, host: str) -> Iterator[RunConfig]:
    """Yields the config with the master's address. host: the address that it listens on; loopback unless the run spans nodes."""
    program = master_program()
    port, stopping = free_port(host), threading.Event()
    command = [
        program, f"--rpc_address={host}", f"--rpc_port={port}", f"--metrics_host={host}", f"--metrics_port={free_port(host)}",
        "--enable_http_metadata_server=false",
    ]  # fmt: skip
    process = start(command, host, port)

    def keep_alive() -> None:
        nonlocal process
        while not stopping.is_set():
            process.wait()
            if not stopping.is_set():
                process = start(command, host, port)

    keeper = threading.Thread(target=keep_alive, daemon=True)
    keeper.start()
    mooncake = config.inference.mooncake.model_copy(update={"master": f"{host}:{port}"})
    try:
        yield config.model_copy(update={"inference": config.inference.model_copy(update={"mooncake": mooncake})})
    finally:
        stopping.set()
        process.terminate()
        keeper.join()


def master_program() -> str:
    """Of this Python environment, whether or not it is activated, or else of the system."""
    folders = [str(Path(sys.executable).parent), *os.get_exec_path()]
    program = shutil.which("mooncake_master", path=os.pathsep.join(folders))
    if program is None:
        raise UserError("inference.mooncake.master is not set and mooncake_master is not installed: " + install("mooncake"))
    return program


def start(command: list[str], host: str, port: int) -> subprocess.Popen:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return process
        time.sleep(0.1)
    process.kill()
    raise UserError(f"mooncake_master did not start within {START_SECONDS:.0f} s (exit code {process.poll()}): {' '.join(command)}")


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
