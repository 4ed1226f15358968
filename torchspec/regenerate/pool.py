"""Servers side by side: a request goes to whichever is free, and to another one where that fails.

A server that failed gets one request at a time, after a pause that doubles, until one is answered; after TRIES of them it is dead.
"""

import time
from threading import Condition

from torchspec.console import console
from torchspec.errors import UserError
from torchspec.regenerate.protocol import Request, Written
from torchspec.regenerate.server import Refused, Server, ServerFailed

TRIES = 6  # one after another until a server is dead: a quarter of a minute with the pauses between them
REPLIES = 3  # failures of one request, each a reply, until it is the request that is at fault
PAUSE = 0.5  # seconds after the first failure


class Closed(Exception):
    """Nobody waits for the answer any more."""


class Load:
    """How busy a server is, and since when it fails."""

    def __init__(self, server: Server):
        self.server, self.busy, self.failures, self.failed_at, self.rests_until = server, 0, 0, 0.0, 0.0
        self.death: str | None = None

    def is_free(self, in_flight: int, now: float) -> bool:
        most = 1 if self.failures else in_flight
        return self.death is None and self.busy < most and self.rests_until <= now

    def fail(self, reason: str, asked_at: float) -> None:
        if asked_at < self.failed_at:  # all that was in flight when a server falls is one failure
            return
        self.failures, self.failed_at = self.failures + 1, time.monotonic()
        self.rests_until = self.failed_at + PAUSE * 2 ** (self.failures - 1)
        if self.failures == TRIES:
            self.death = reason
            console.print(f"{self.server.url} is given up: {reason}", markup=False)


class Pool:
    """For any number of threads."""

    def __init__(self, servers: list[Server], in_flight: int):
        """in_flight: requests at a time, of each server."""
        self.loads, self.in_flight = [Load(server) for server in servers], in_flight
        self.changed, self.closed = Condition(), False

    def ask(self, request: Request) -> Written:
        """Waits for a free server and for its answer. Refused: no server takes this request. UserError: none is left."""
        replies = 0
        while True:
            load, asked_at, failure = self._take(), time.monotonic(), None
            try:
                return load.server.answer(request)
            except ServerFailed as failed:
                failure = str(failed)
                replies += failed.by_request
                if replies == REPLIES:
                    raise Refused(failure) from failed
            finally:
                self._give_back(load, asked_at, failure)

    def close(self) -> None:
        """Whoever waits, or fails from now on, gets Closed."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _take(self) -> Load:
        with self.changed:
            while True:
                if self.closed:
                    raise Closed
                if all(load.death for load in self.loads):
                    deaths = "; ".join(f"{load.server.url}: {load.death}" for load in self.loads)
                    raise UserError(
                        f"no server is left ({deaths}); every conversation that was answered whole is kept, and the same command goes "
                        "on there once a server runs"
                    )
                now = time.monotonic()
                free = [load for load in self.loads if load.is_free(self.in_flight, now)]
                if free:
                    load = min(free, key=lambda load: (load.failures > 0, load.busy))
                    load.busy += 1
                    return load
                pauses = [load.rests_until - now for load in self.loads]
                self.changed.wait(min((pause for pause in pauses if pause > 0), default=None))

    def _give_back(self, load: Load, asked_at: float, failure: str | None) -> None:
        with self.changed:
            load.busy -= 1
            if failure is None:
                load.failures = 0
            else:
                load.fail(failure, asked_at)
            self.changed.notify_all()
