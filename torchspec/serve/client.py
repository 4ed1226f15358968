"""Asks a server that speaks OpenAI's protocol, a given number of prompts at a time, and keeps the times at which tokens came."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import openai

from torchspec.errors import UserError

PATIENCE = 1800.0  # seconds for one answer


@dataclass(frozen=True)
class Request:
    """What is sent with every prompt."""

    max_new_tokens: int
    temperature: float
    seed: int
    stop: list[int]  # token ids
    extra: dict  # fields of the engine's own


@dataclass(frozen=True)
class Reply:
    ids: list[int]  # stop token included
    first: float  # seconds until the first token came
    seconds: float  # until the last one came
    details: dict | None  # what the engine says of its speculation, where it says it with the answer


@dataclass(frozen=True)
class Group:
    """Prompts that were asked together."""

    replies: list[Reply]
    seconds: float  # from the first request to the last token

    @classmethod
    def from_json(cls, row: dict) -> "Group":
        return cls([Reply(**reply) for reply in row["replies"]], row["seconds"])


class Client:
    def __init__(self, url: str, log: str):
        """log: where a reader finds what the server said."""
        self.url, self.log = url, log
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
        try:
            self.model = self.openai.models.list().data[0].id
        except openai.OpenAIError as error:
            raise self.failed(error) from error

    def ask_all(self, prompts: list[list[int]], concurrency: int, request: Request) -> Group:
        """As many at a time as `concurrency`, the next when one is done; replies in the order of the prompts."""
        started = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            replies = list(pool.map(lambda prompt: self.ask(prompt, request), prompts))
        return Group(replies, time.perf_counter() - started)

    def ask(self, prompt: list[int], request: Request) -> Reply:
        """The prompt goes as token ids, so that no server tokenises differently; the ids come back for the same reason."""
        extra = {"stop_token_ids": request.stop, "return_token_ids": True, **request.extra}
        ids, times, details, started = [], [], None, time.perf_counter()
        try:
            stream = self.openai.completions.create(
                model=self.model, prompt=prompt, max_tokens=request.max_new_tokens, temperature=request.temperature, seed=request.seed,
                stream=True, extra_body=extra,
            )  # fmt: skip
            for chunk in stream:
                details = (chunk.model_extra.get("sglext") or {}).get("spec_tokens_details") or details
                new = [token for choice in chunk.choices for token in choice.model_extra.get("token_ids") or []]
                if new:
                    ids += new
                    times.append(time.perf_counter() - started)
        except openai.OpenAIError as error:
            raise self.failed(error) from error
        if not ids:
            raise UserError(f"the server at {self.url} sent no token ids; it must support return_token_ids (vLLM 0.11, SGLang 0.5.23)")
        return Reply(ids, times[0], times[-1], details)

    def failed(self, error: Exception) -> UserError:
        return UserError(f"the server at {self.url} failed ({type(error).__name__}: {error}); {self.log}. What was measured is kept")


def rates(groups: list[Group]) -> dict:
    """Of all groups: output tokens per second; medians of the time to the first token, and of the time per further token."""
    replies = [reply for group in groups for reply in group.replies]
    tokens, seconds = sum(len(reply.ids) for reply in replies), sum(group.seconds for group in groups)
    further = [(reply.seconds - reply.first) / (len(reply.ids) - 1) for reply in replies if len(reply.ids) > 1]
    return {
        "tokens_per_second": tokens / seconds,
        "ttft_ms": 1000 * statistics.median(reply.first for reply in replies),
        "tpot_ms": 1000 * statistics.median(further) if further else 0.0,
    }
