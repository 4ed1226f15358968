"""Ray's object store: the answer itself lies there. On one node the trainer reads it in place, from another node Ray fetches it."""

from torchspec.config import RunConfig
from torchspec.transfer.codec import Wire


class RayTransfer:
    def __init__(self, config: RunConfig, sends: bool):
        pass

    def put(self, wire: Wire) -> Wire:
        return wire

    def get(self, ticket: Wire) -> Wire:
        return ticket
