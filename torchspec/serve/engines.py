"""The engines that a draft is measured in: how each is started with and without it, and how each tells what it accepted."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from torchspec.serve.client import Reply


@dataclass(frozen=True)
class Steps:
    """What a server counted. B-1 draft tokens a step."""

    steps: int  # target forwards that verified drafts of one sequence
    accepted: list[int]  # [k-1] steps that accepted draft token k, k = 1..B-1

    def since(self, before: "Steps") -> "Steps":
        return Steps(self.steps - before.steps, [a - b for a, b in zip(self.accepted, before.accepted, strict=True)])


@dataclass(frozen=True)
class Engine:
    module: str  # python -m MODULE starts the server
    arguments: Callable[[Path, str], list[str]]  # target, dtype -> of every server
    with_draft: Callable[[Path, str, int], list[str]]  # draft folder, method, draft tokens -> further arguments
    request: dict  # what the OpenAI protocol does not have
    count: Callable[[str, list[Reply], int], Steps]  # URL, replies, draft tokens -> all that was counted so far
    version: Callable[[str], str]  # URL -> of the engine


def _get(url: str, path: str) -> dict:
    return requests.get(f"{url}/{path}", timeout=60).json()


VLLM_METHODS = {"peagle": {"method": "eagle3", "parallel_drafting": True}}  # those that it calls otherwise


def _vllm_arguments(target: Path, dtype: str) -> list[str]:
    """No prefix cache: a prompt that is asked twice would cost nothing the second time. Sampling by our settings alone."""
    return ["--model", str(target), "--dtype", dtype, "--no-enable-prefix-caching", "--generation-config", "vllm"]


def _vllm_draft(draft: Path, method: str, tokens: int) -> list[str]:
    named = VLLM_METHODS.get(method, {"method": method})
    return ["--speculative-config", json.dumps({**named, "model": str(draft), "num_speculative_tokens": tokens})]


def _vllm_count(url: str, _replies: list[Reply], tokens: int) -> Steps:
    """From the server's Prometheus counters, all its processes added up."""
    text = requests.get(f"{url}/metrics", timeout=60).text
    steps, accepted = 0, [0] * tokens
    for sample in (s for family in text_string_to_metric_families(text) for s in family.samples):
        if sample.name == "vllm:spec_decode_num_drafts_total":
            steps += int(sample.value)
        elif sample.name == "vllm:spec_decode_num_accepted_tokens_per_pos_total":
            accepted[int(sample.labels["position"])] += int(sample.value)
    return Steps(steps, accepted)


def _sglang_arguments(target: Path, dtype: str) -> list[str]:
    return ["--model-path", str(target), "--dtype", dtype, "--disable-radix-cache", "--sampling-defaults", "openai"]


def _sglang_draft(draft: Path, method: str, tokens: int) -> list[str]:
    words = ["--speculative-algorithm", method.upper(), "--speculative-draft-model-path", str(draft)]
    words += ["--speculative-num-draft-tokens", str(tokens + 1)]  # SGLang counts the anchor, or the tree's root
    return [*words, "--speculative-num-steps", str(tokens), "--speculative-eagle-topk", "1"] if method == "eagle3" else words


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
        "vllm.entrypoints.openai.api_server", _vllm_arguments, _vllm_draft, {}, _vllm_count, lambda url: _get(url, "version")["version"]
    ),
    "sglang": Engine(
        "sglang.launch_server",
        _sglang_arguments,
        _sglang_draft,
        {"return_spec_tokens_details": True},
        _sglang_count,
        lambda url: _get(url, "server_info")["version"],
    ),
}
