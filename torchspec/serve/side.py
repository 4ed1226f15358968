"""The prompts asked of one kind of server, with the draft or without, group by group."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from torchspec.console import console
from torchspec.files.kept import Kept
from torchspec.progress import with_progress
from torchspec.records import Prompt
from torchspec.serve.client import Client, Group, Reply, Request, rates
from torchspec.serve.engines import ENGINES
from torchspec.serve.options import Serving
from torchspec.serve.records import Load, Served, Steps
from torchspec.serve.server import open_server, running_server

WAVES = 8  # prompts asked together, per concurrency: what is lost at most when the run is killed


@dataclass(frozen=True)
class Asked:
    """What is sent to servers: prompts whose first answer is written anew."""

    prompts: list[Prompt]
    max_new_tokens: int
    temperature: float
    seed: int
    stop: tuple[int, ...]  # token ids


@dataclass(frozen=True)
class Measured:
    """One group of prompts, and what the server counted while it answered them."""

    group: Group
    steps: Steps
    version: str  # of the engine

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict) -> "Measured":
        return cls(Group.from_json(row["group"]), Steps(**row["steps"]), row["version"])


class Side:
    """Its server runs only while something is left to ask."""

    def __init__(self, served: Served, asked: Asked, serving: Serving, with_draft: bool, logs: Path):
        self.served, self.asked, self.serving, self.with_draft, self.logs = served, asked, serving, with_draft, logs
        self.engine = ENGINES[serving.engine]
        self.name = f"{serving.engine} {'with the draft' if with_draft else 'without draft'}"
        self.request = Request(asked.max_new_tokens, asked.temperature, asked.seed, list(asked.stop), self.engine.request)
        self.client: Client | None = None

    def ask(self, concurrencies: list[int], kept: Kept) -> dict[int, list[Measured]]:
        prompts, taken = [prompt.question.tolist() for prompt in self.asked.prompts], {}
        load = Load(max(concurrencies), max(map(len, prompts)) + self.asked.max_new_tokens)
        with ExitStack() as servers:
            for concurrency in concurrencies:
                size, what = WAVES * concurrency, f"{self.name}, {concurrency} at a time"
                groups = [prompts[start : start + size] for start in range(0, len(prompts), size)]
                rows = [
                    kept.get_or(
                        f"{self.name} {concurrency} {n}", lambda ids=ids, c=concurrency: self._measure(ids, c, load, servers).to_json()
                    )
                    for n, ids in enumerate(with_progress(iter(groups), what, len(groups), unit="groups"))
                ]
                taken[concurrency] = [Measured.from_json(row) for row in rows]
                speed = rates([measured.group for measured in taken[concurrency]])["tokens_per_second"]
                console.print(f"{what}: {speed:.1f} tok/s", markup=False)
        return taken

    def _measure(self, prompts: list[list[int]], concurrency: int, load: Load, servers: ExitStack) -> Measured:
        if self.client is None:
            self.client = servers.enter_context(self._server(load))
            self.client.ask(prompts[0], self.request)  # the first forwards are slow
        before = self._count([])
        group = self.client.ask_all(prompts, concurrency, self.request)
        return Measured(group, self._count(group.replies).since(before), self.engine.version(self.client.url))

    def _count(self, replies: list[Reply]) -> Steps:
        return self.engine.count(self.client.url, replies, self.served.draft_tokens)

    def _server(self, load: Load) -> AbstractContextManager[Client]:
        url = self.serving.url if self.with_draft else self.serving.plain_url
        if url is not None:
            return running_server(self.engine, url)
        loaded = self.engine.files(self.served, self.serving, self.logs.parent / "gguf")
        arguments = self.engine.arguments(loaded, load) + self.engine.uncached
        if self.with_draft:
            arguments += self.engine.with_draft(loaded.drafting)
        return open_server(self.name, self.engine, arguments, self.serving, self.logs / f"{self.name.replace(' ', '_')}.log")
