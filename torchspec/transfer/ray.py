"""Ray's object store: the result of the call is the data. On one node the trainer reads the worker's memory, without a copy."""

from torchspec.config import RunConfig
from torchspec.transfer.codec import Wire


class RayTransfer:
    def __init__(self, config: RunConfig):
        pass

    def put(self, wire: Wire) -> Wire:
        return wire

    def get(self, ticket: Wire) -> Wire:
        return ticket
