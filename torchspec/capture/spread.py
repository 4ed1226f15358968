"""Several servers as one capture: a dead one's prompts go to the others."""

from collections.abc import Sequence
from importlib import import_module

from torchspec.capture.base import CaptureSpec
from torchspec.capture.pool import Pool
from torchspec.capture.server import ServerCapture
from torchspec.errors import UserError
from torchspec.records import Features, Prompt

SERVERS = {"sglang": "torchspec.capture.sglang.server:SGLangServer", "vllm": "torchspec.capture.vllm.server:VLLMServer"}


def open_server(name: str, spec: CaptureSpec, url: str) -> ServerCapture:
    module, _, attribute = SERVERS[name].partition(":")
    return ServerCapture(spec, url, getattr(import_module(module), attribute)(spec, url))


def open_servers(name: str, spec: CaptureSpec, urls: Sequence[str]) -> "SpreadCapture":
    return SpreadCapture([open_server(name, spec, url) for url in urls])


class SpreadCapture:
    """Threads use it together, as many as there should be prompts under way."""

    def __init__(self, servers: list[ServerCapture]):
        self.servers, self.pool = servers, Pool(servers)
        self.layer_ids, self.producer = servers[0].layer_ids, servers[0].producer
        for other in servers:
            if other.producer != self.producer:
                raise UserError(f"inference.server_url: {servers[0].who} and {other.who} differ; give servers of one engine and version")

    def capture(self, prompt: Prompt) -> Features:
        return self.pool.ask(lambda server: server.capture(prompt))

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        return [self.capture(prompt) for prompt in prompts]

    def verify(self, prompts: list[Prompt]) -> None:
        for server in self.servers:
            server.verify(prompts)
