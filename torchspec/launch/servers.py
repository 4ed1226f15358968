"""Features from servers that somebody else started: each rank asks all of them itself, so neither workers nor Ray stand between."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from torchspec.capture.base import Capture
from torchspec.capture.cache import CachedCapture
from torchspec.capture.engine import capture_spec, open_engine
from torchspec.config import RunConfig
from torchspec.launch.remote import RemoteCapture
from torchspec.methods.base import Method
from torchspec.records import Prompt
from torchspec.training.build import Supply, cache_bytes, in_process
from torchspec.training.stream import Source
from torchspec.transfer.codec import Wire, encode

IN_FLIGHT = 4  # prompts of a rank at each server: it runs some while the states of others travel


class ServerPool:
    """A thread for each prompt under way. What was captured before is kept here where the run keeps it, and no server is asked."""

    def __init__(self, engine: Capture, cache: int, servers: int, fp8: bool):
        """cache: bytes that are kept in memory."""
        self.engine, self.kept, self.fp8 = engine, CachedCapture(engine, cache, torch.device("cpu")), fp8
        self.threads = ThreadPoolExecutor(IN_FLIGHT * servers, thread_name_prefix="servers")

    def send(self, prompts: list[Prompt]) -> list[Future]:
        return [self.threads.submit(self._capture, prompt) for prompt in prompts]

    def receive(self, request: list[Future]) -> list[Wire]:
        return [answer.result() for answer in request]

    def verify(self, prompts: list[Prompt]) -> None:
        self.engine.verify(prompts)

    def producer(self) -> str:
        return self.engine.producer

    def _capture(self, prompt: Prompt) -> Wire:
        return encode(self.kept.capture(prompt), self.fp8)


def from_servers(config: RunConfig, method: Method, samples: int, device: torch.device) -> tuple[Source, Capture]:
    """For a rank whose plan has so many samples."""
    spec = capture_spec(config, method.target.folder, method.layer_ids, torch.device("cpu"), method.target)
    pool = ServerPool(open_engine(config, spec), cache_bytes(config)[0], len(config.inference.servers), spec.fp8)
    width = method.target.config.hidden_size * len(method.layer_ids)
    remote = RemoteCapture(pool, config, method.layer_ids, width, samples, device)
    return remote, remote


def supply(config: RunConfig) -> Supply:
    """Of a rank without capture workers."""
    return from_servers if config.inference.servers else in_process
