"""The way out of an engine: an outbox, a port, and what the engine's environment must have for them."""

import ast
import os
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torchspec.capture import outbox, shared_memory
from torchspec.capture.feature_port import open_port
from torchspec.capture.http import ServerDown, call
from torchspec.capture.outbox import NAME, Delivery, Outbox, new_name
from torchspec.errors import ContractError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def port(tmp_path):
    server = open_port(tmp_path, NAME, "127.0.0.1:0")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_port_hands_out_states_once_and_nothing_else(port, tmp_path):
    name, other = new_name(), tmp_path / "secret"
    (tmp_path / name).write_bytes(b"states")
    other.write_bytes(b"secret")
    with pytest.raises(ContractError, match="more than 5 bytes"):
        call(f"{port}/{name}", limit=5)
    (tmp_path / name).write_bytes(b"states")
    assert call(f"{port}/{name}", limit=6) == b"states"
    for path in (name, "", "secret", "../secret", f"{name}/../secret", f"./{name}"):
        with pytest.raises(ContractError, match="404"):
            call(f"{port}/{path}", limit=100)
    assert other.read_bytes() == b"secret"


def test_an_answer_that_breaks_off_is_a_dead_server_and_no_states():
    """A server that promises ten bytes, sends four and is gone."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = listening.accept()
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfour")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    with listening, pytest.raises(ServerDown, match="broke off 6 bytes before the end"):
        call(f"http://127.0.0.1:{listening.getsockname()[1]}/x", limit=100)


def test_damaged_bytes_are_refused(tmp_path):
    box, name = Outbox(Delivery(str(tmp_path), [0], False), ""), new_name()
    box.put(name, torch.randn(3, 4), torch.randn(4))
    data = (tmp_path / name).read_bytes()
    assert shared_memory.parse(data, "it").origin == {"layer_ids": "[0]"}
    with pytest.raises(ContractError, match="what it sent is not whole"):
        shared_memory.parse(data[:-1], "it")


def test_a_shared_outbox_removes_what_nobody_fetched_and_keeps_no_states_where_memory_ends(tiny_folder, tmp_path, monkeypatch, capfd):
    box = Outbox(Delivery(str(tmp_path), [0], False, shared=True), str(tiny_folder))
    old, new, none = new_name(), new_name(), new_name()
    box.put(old, torch.randn(3, 4), torch.randn(4))
    os.utime(tmp_path / old, (0, 0))
    box.put(new, torch.randn(3, 4), torch.randn(4))
    box.put("../elsewhere", torch.randn(3, 4), torch.randn(4))
    monkeypatch.setattr(outbox.shutil, "disk_usage", lambda folder: SimpleNamespace(free=90))
    box.put(none, torch.randn(3, 4), torch.randn(4))
    assert {file.name for file in tmp_path.iterdir()} == {new} and "so no states of" in capfd.readouterr().out


@pytest.mark.parametrize("inside", ["sglang.hook", "vllm.connector"])
def test_an_engines_environment_needs_torchspec_alone(inside):
    """`pip install --no-deps torchspec` is what the page says: every import at the top of our piece, and of what that imports."""
    seen, waiting, others = set(), [f"torchspec.capture.{inside}"], set()
    while waiting:
        module = waiting.pop()
        file = ROOT / f"{module.replace('.', '/')}.py"
        if module in seen or not file.is_file():
            continue
        seen.add(module)
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module, *(f"{node.module}.{a.name}" for a in node.names)] if isinstance(node, ast.ImportFrom) else []
            waiting += [name for name in names if name.startswith("torchspec.")]
            others |= {name.split(".")[0] for name in names}
    there = {"torch", "numpy", "safetensors", "transformers", inside.split(".")[0], "torchspec"}
    assert "torchspec.capture.outbox" in seen and others - sys.stdlib_module_names <= there
