"""Transfers by name: how features get from a worker's memory to a trainer's. Requests and answers always go through Ray."""

from importlib import import_module
from typing import Protocol

from torchspec.config import RunConfig
from torchspec.transfer.codec import Wire

TRANSFERS = {"ray": "torchspec.transfer.ray:RayTransfer", "mooncake": "torchspec.transfer.mooncake:MooncakeTransfer"}


class Transfer(Protocol):
    """One end. What `put` returns travels in the answer to the request; `get` is called once with it, at the other end."""

    def put(self, wire: Wire) -> object: ...
    def get(self, ticket: object) -> Wire: ...


def open_transfer(config: RunConfig, sends: bool) -> Transfer:
    """sends: true for the worker's end."""
    module, _, attribute = TRANSFERS[config.inference.transfer].partition(":")
    return getattr(import_module(module), attribute)(config, sends)
