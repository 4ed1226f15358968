"""Transfers by name: how a worker's features reach the trainer that asked. The ticket travels as the result of a Ray call."""

from importlib import import_module
from typing import Any, Protocol

from torchspec.config import RunConfig
from torchspec.transfer.codec import Wire

TRANSFERS = {"ray": "torchspec.transfer.ray:RayTransfer", "mooncake": "torchspec.transfer.mooncake:MooncakeTransfer"}


class Transfer(Protocol):
    def put(self, wire: Wire) -> Any:
        """On a worker: stores the data, returns the ticket."""
        ...

    def get(self, ticket: Any) -> Wire:
        """On a trainer: the data of a ticket, which is gone from the store afterwards."""
        ...


def open_transfer(config: RunConfig) -> Transfer:
    module, _, attribute = TRANSFERS[config.inference.transfer].partition(":")
    return getattr(import_module(module), attribute)(config)
