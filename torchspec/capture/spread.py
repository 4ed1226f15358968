"""Several servers as one capture: each prompt goes to the one with the fewest under way, a dead one's prompts go to the others."""

import math
import threading
import time
from collections.abc import Sequence
from importlib import import_module

from torchspec.capture.base import CaptureSpec
from torchspec.capture.http import ServerDown
from torchspec.capture.server import ServerCapture
from torchspec.console import console
from torchspec.errors import UserError
from torchspec.records import Features, Prompt

SERVERS = {"sgl": "torchspec.capture.sglang.server:SGLangServer", "vllm": "torchspec.capture.vllm.server:VLLMServer"}
REST = 10.0  # seconds until a server that did not answer is asked again: it may have been restarted
PATIENCE = 60.0  # seconds without an answer of any server after which the run stops


def open_server(name: str, spec: CaptureSpec, url: str) -> ServerCapture:
    module, _, attribute = SERVERS[name].partition(":")
    return ServerCapture(spec, url, getattr(import_module(module), attribute)(spec, url))


def open_servers(name: str, spec: CaptureSpec, urls: Sequence[str]) -> "SpreadCapture":
    return SpreadCapture([open_server(name, spec, url) for url in urls])


class SpreadCapture:
    """Threads use it together, as many as there should be prompts under way."""

    def __init__(self, servers: list[ServerCapture], rest: float = REST, patience: float = PATIENCE):
        self.servers, self.rest, self.patience = servers, rest, patience
        self.layer_ids, self.producer = servers[0].layer_ids, servers[0].producer
        for other in servers:
            if other.producer != self.producer:
                raise UserError(f"inference.server_url: {servers[0].who} and {other.who} differ; give servers of one engine and version")
        self.lock = threading.Lock()
        self.under_way = [0] * len(servers)
        self.resting: dict[int, tuple[float, str]] = {}  # servers that did not answer: when to ask again, and what happened
        self.silent_since = 0.0  # where none answers

    def capture(self, prompt: Prompt) -> Features:
        while True:
            chosen, returns = self._choose()
            try:
                return self.servers[chosen].capture(prompt)
            except ServerDown as error:
                self._down(chosen, str(error))
                returns = False
            finally:
                self._finish(chosen, returns)

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        return [self.capture(prompt) for prompt in prompts]

    def verify(self, prompts: list[Prompt]) -> None:
        for server in self.servers:
            server.verify(prompts)

    def _choose(self) -> tuple[int, bool]:
        """A server that answers, or one whose rest is over, and whether it is such a one: any answer brings it back then. What was asked
        before it fell may still come, and proves nothing.
        """
        while True:
            with self.lock:
                now = time.monotonic()
                ready = [i for i in range(len(self.servers)) if i not in self.resting or self.resting[i][0] <= now]
                if ready:
                    chosen = min(ready, key=self.under_way.__getitem__)
                    self.under_way[chosen] += 1
                    returns = chosen in self.resting
                    if returns:  # one prompt finds out
                        self.resting[chosen] = (math.inf, self.resting[chosen][1])
                    return chosen, returns
                if now - self.silent_since > self.patience:
                    reasons = "; ".join(reason for _, reason in self.resting.values())
                    raise UserError(f"no server of inference.server_url has answered for {self.patience:.0f} seconds: {reasons}")
            time.sleep(min(self.rest, 0.2))

    def _down(self, server: int, reason: str) -> None:
        with self.lock:
            known, now = server in self.resting, time.monotonic()
            self.resting[server] = (now + self.rest, reason)
            others = len(self.servers) - len(self.resting)
            if not known and not others:
                self.silent_since = now
        if not known:
            then = f"its requests go to the other {others} server(s)" if others else f"none is left, and {self.patience:.0f} s are waited"
            console.print(f"{self.servers[server].url} is down: {reason}; {then}", markup=False)

    def _finish(self, server: int, returns: bool) -> None:
        with self.lock:
            self.under_way[server] -= 1
            back = returns and self.resting.pop(server, None) is not None
        if back:
            console.print(f"{self.servers[server].url} answers again", markup=False)
