"""Servers side by side: a request goes to the one with the fewest under way, and to another one where that fails.

A server that failed rests, twice as long each time, and is asked one request at a time until it answers one. None is given up while
another answers: it may have been restarted.
"""

import math
import time
from collections.abc import Callable, Sequence
from threading import Condition
from typing import Protocol, TypeVar

from torchspec.capture.http import Refused, ServerDown
from torchspec.console import console
from torchspec.errors import UserError

FIRST_REST, LONGEST_REST = 0.5, 10.0  # seconds
PATIENCE = 60.0  # seconds without an answer of any server after which a request is given up
NAMED = 2  # failures one after another until a server is named: the first may be the request's fault
REPLIES = 3  # failures of one request, each a reply, until it is the request that is at fault


class HasURL(Protocol):
    url: str


Server, Answer = TypeVar("Server", bound=HasURL), TypeVar("Answer")


class Closed(Exception):
    """Nobody waits for the answer any more."""


class Member:
    """How busy a server is, and since when it fails."""

    def __init__(self, server: HasURL):
        self.server, self.busy, self.failures, self.reason = server, 0, 0, ""
        self.fails_since = self.failed_at = self.rests_until = 0.0

    def is_free(self, most: float, now: float) -> bool:
        return self.busy < (1 if self.failures else most) and self.rests_until <= now

    def end(self, asked_at: float, failure: str | None) -> None:
        """Of a request. One from before the last failure says nothing new: all that was in flight when a server falls is one failure."""
        self.busy -= 1
        if asked_at < self.failed_at:
            return
        if failure is not None:
            self._fail(failure, time.monotonic())
        elif self.failures:
            if self.failures >= NAMED:
                console.print(f"{self.server.url} answers again", markup=False)
            self.failures = 0

    def _fail(self, reason: str, now: float) -> None:
        self.fails_since = self.fails_since if self.failures else now
        self.rests_until = now + min(FIRST_REST * 2.0 ** min(self.failures, 9), LONGEST_REST)
        self.failures, self.failed_at, self.reason = self.failures + 1, now, reason
        if self.failures == NAMED:
            console.print(f"{self.server.url} is down: {reason}; it is asked again, and its requests go to the others", markup=False)


class Pool:
    """For any number of threads."""

    def __init__(self, servers: Sequence[Server], most: float = math.inf):
        """most: requests at a time, of each server."""
        self.members, self.most = [Member(server) for server in servers], most
        self.changed, self.closed = Condition(), False

    def ask(self, request: Callable[[Server], Answer]) -> Answer:
        """Waits for a free server and for its answer. Refused: no server takes this request. UserError: none answers any."""
        began, replies = time.monotonic(), 0
        while True:
            member, failure = self._take(began), None
            asked_at = time.monotonic()
            try:
                return request(member.server)
            except ServerDown as down:
                failure, replies = str(down), replies + down.replied
                if replies == REPLIES:
                    raise Refused(failure) from down
            finally:
                with self.changed:
                    member.end(asked_at, failure)
                    self.changed.notify_all()

    def close(self) -> None:
        """Whoever waits, or fails from now on, gets Closed."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _take(self, began: float) -> Member:
        with self.changed:
            while True:
                if self.closed:
                    raise Closed
                now = time.monotonic()
                self._check_alive(began, now)
                free = [member for member in self.members if member.is_free(self.most, now)]
                if free:
                    chosen = min(free, key=lambda member: (member.failures == 0, member.busy))  # one request finds out whether it is back
                    chosen.busy += 1
                    return chosen
                rests = [member.rests_until - now for member in self.members]
                self.changed.wait(min((rest for rest in rests if rest > 0), default=None))

    def _check_alive(self, began: float, now: float) -> None:
        if all(member.failures and not member.busy for member in self.members):
            silent_since = max(began, *(member.fails_since for member in self.members))
            if now - silent_since > PATIENCE:
                reasons = "; ".join(f"{member.server.url}: {member.reason}" for member in self.members)
                raise UserError(
                    f"no server has answered for {PATIENCE:.0f} seconds ({reasons}); start one again, and the same command goes on from "
                    "what is kept"
                )
