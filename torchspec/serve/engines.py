"""The engines that a draft is measured in: how each is started with and without it, and how each tells what it accepted."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests

from torchspec.export.commands import Drafting, llamacpp_words, sglang_words, vllm_words
from torchspec.serve import llamacpp
from torchspec.serve.client import Client, Reply
from torchspec.serve.options import Serving
from torchspec.serve.prometheus import by_position, total
from torchspec.serve.records import Load, Served, Steps


@dataclass(frozen=True)
class Engine:
    command: Callable[[Serving], list[str]]  # starts the server
    files: Callable[[Served, Serving, Path], Served]  # what it loads, in a form that it reads; the folder keeps what is made
    arguments: Callable[[Served, Load], list[str]]  # of every server
    tensor_parallel: Callable[[int], list[str]]  # over so many GPUs of its own
    uncached: list[str]  # of servers that are measured: a prompt that is asked twice would cost nothing the second time
    with_draft: Callable[[Drafting], list[str]]  # further arguments
    client: Callable[[str, str], Client]  # URL, where its log is
    request: dict  # what the OpenAI protocol does not have
    count: Callable[[str, list[Reply], int], Steps]  # URL, replies, draft tokens -> all that was counted so far
    version: Callable[[str], str]  # URL -> of the engine


def module(name: str) -> Callable[[Serving], list[str]]:
    return lambda serving: [serving.python or sys.executable, "-m", name]


def _as_they_are(served: Served, _serving: Serving, _folder: Path) -> Served:
    return served


def _get(url: str, path: str) -> dict:
    return requests.get(f"{url}/{path}", timeout=60).json()


def _vllm_arguments(served: Served, _load: Load) -> list[str]:
    """Sampling by our settings alone."""
    return ["--model", str(served.target), "--dtype", served.dtype, "--generation-config", "vllm"]


def _vllm_count(url: str, _replies: list[Reply], tokens: int) -> Steps:
    """From the server's own counters."""
    text = requests.get(f"{url}/metrics", timeout=60).text
    accepted = by_position(text, "vllm:spec_decode_num_accepted_tokens_per_pos_total", tokens)
    return Steps(total(text, "vllm:spec_decode_num_drafts_total"), accepted)


def _sglang_arguments(served: Served, _load: Load) -> list[str]:
    return ["--model-path", str(served.target), "--dtype", served.dtype, "--sampling-defaults", "openai"]


def _sglang_count(_url: str, replies: list[Reply], tokens: int) -> Steps:
    """From what comes with each answer: how many of its steps accepted how many drafts."""
    steps, accepted = 0, [0] * tokens
    for reply in replies:
        histogram = reply.details["spec_correct_drafts_histogram"] if reply.details else []
        steps += sum(histogram)
        for slot in range(tokens):
            accepted[slot] += sum(histogram[slot + 1 :])
    return Steps(steps, accepted)


ENGINES = {
    "vllm": Engine(
        module("vllm.entrypoints.openai.api_server"),
        _as_they_are,
        _vllm_arguments,
        lambda gpus: ["--tensor-parallel-size", str(gpus)],
        ["--no-enable-prefix-caching"],
        vllm_words,
        Client,
        {},
        _vllm_count,
        lambda url: _get(url, "version")["version"],
    ),
    "sglang": Engine(
        module("sglang.launch_server"),
        _as_they_are,
        _sglang_arguments,
        lambda gpus: ["--tp-size", str(gpus)],
        ["--disable-radix-cache"],
        sglang_words,
        Client,
        {"return_spec_tokens_details": True},
        _sglang_count,
        lambda url: _get(url, "server_info")["version"],
    ),
    "llamacpp": Engine(
        llamacpp.command,
        llamacpp.files,
        llamacpp.arguments,
        lambda _gpus: [],  # it takes all that it sees, layer by layer
        [],  # its client asks each prompt without the cache
        llamacpp_words,
        llamacpp.LlamaCppClient,
        {},
        llamacpp.count,
        lambda url: _get(url, "props")["build_info"],
    ),
}
