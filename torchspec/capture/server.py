"""Capture by a server that somebody else started, alone or with others, on this node or another."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import torch

from torchspec.capture.base import CaptureSpec
from torchspec.capture.http import call, is_loopback
from torchspec.capture.outbox import Delivery, new_name
from torchspec.capture.outside import OutsideCapture
from torchspec.capture.shared_memory import ROOT, States, no_states, parse, take
from torchspec.errors import ContractError, EngineMismatch, UserError
from torchspec.files.contents import model_key
from torchspec.records import Prompt
from torchspec.target.model import load_config

FOLDER = ROOT / "torchspec-server"  # servers of one node may share it: names are drawn at random
PORT_ABOVE = 100  # a server's own port, where it hands out features; the next ones are likely another server's
HEADER = 2**16  # bytes of a file of states beside its tensors, at most


class Dialect(Protocol):
    """One running server of an engine, opened: asked what it is, and refused with the command that starts it rightly."""

    engine: str  # name and version
    delivery: Delivery  # how its states reach us

    def next_token(self, ids: list[int], name: str) -> int:
        """Runs a prompt, whose states stand under this name when it answers."""
        ...


def wanted_delivery(spec: CaptureSpec, url: str, found: dict | None) -> Delivery:
    """How a server should hand out its states to us. Where it puts them is its own matter, as long as we get there.

    found: what it was told. Only a loopback URL proves that it shares memory with this process; all others are asked over the network.
    """
    where = urlsplit(url)
    wanted = Delivery(
        str(FOLDER), list(spec.layer_ids), spec.fp8, True, None if is_loopback(url) else f"{where.hostname}:{where.port + PORT_ABOVE}"
    )
    if found is None:
        return wanted
    return replace(wanted, folder=found.get("folder") or wanted.folder, listen=found.get("listen") or wanted.listen)


def server_words(spec: CaptureSpec, url: str) -> list[str]:
    """Of a command that starts a server at this URL; both engines spell them alike."""
    where, code = urlsplit(url), ["--trust-remote-code"] if spec.trust_remote_code else []
    return ["--dtype", str(spec.dtype).removeprefix("torch."), "--host", where.hostname, "--port", str(where.port), *code]


class ServerCapture(OutsideCapture):
    """Threads may ask it together: the server decides what runs with what, so a row may be rounded differently from run to run."""

    def __init__(self, spec: CaptureSpec, url: str, dialect: Dialect):
        super().__init__(spec, dialect.engine)
        self.url, self.dialect, self.who = url, dialect, f"inference.server_url={url} ({dialect.engine})"
        self.folder, self.port = Path(dialect.delivery.folder), None
        if not is_loopback(url):
            self.port = f"http://{urlsplit(url).hostname}:{dialect.delivery.listen.rpartition(':')[2]}"
        elif not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
            raise UserError(
                f"{self.who} writes its states to {self.folder}, which is not here or another user's; give the URL by which other nodes "
                "reach it, and they travel over the network"
            )
        self.origin = {"layer_ids": json.dumps(list(spec.layer_ids)), "target": model_key(spec.folder)}
        self.dtype = torch.float8_e4m3fn if spec.fp8 else spec.dtype
        hidden = load_config(spec.folder, spec.trust_remote_code).hidden_size
        self.last_bytes = hidden * 4
        self.row_bytes = len(spec.layer_ids) * (hidden + 1) * 4

    def run(self, prompts: Sequence[Prompt]) -> tuple[list[States], list[int]]:
        answers = [self._ask(prompt) for prompt in prompts]
        return [states for states, _ in answers], [token for _, token in answers]

    def _ask(self, prompt: Prompt) -> tuple[States, int]:
        name = new_name()
        token = self.dialect.next_token(prompt.ids.tolist(), name)
        states = take(self.folder, name, self.who) if self.port is None else self._fetch(name, len(prompt.ids))
        self._check(states)
        return states, token

    def _fetch(self, name: str, rows: int) -> States:
        limit = HEADER + self.last_bytes + rows * self.row_bytes
        try:
            return parse(call(f"{self.port}/{name}", limit), self.who)
        except ContractError as error:
            raise ContractError(f"{no_states(self.who)} ({error})") from error

    def _check(self, states: States) -> None:
        if states.origin != self.origin:
            raise EngineMismatch(
                f"{self.who} yields states of {states.origin}, and this run trains on {self.origin}: start it with the same files of the "
                "target (config.json and *.safetensors, by their contents) and the same layers"
            )
        if states.context.dtype != self.dtype:
            raise EngineMismatch(
                f"{self.who} yields {states.context.dtype}, and this run wants {self.dtype}; start it with another --dtype"
            )
