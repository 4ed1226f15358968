"""Real llama.cpp servers answer while one of them and then the client are killed with SIGKILL; in the end every conversation is there
once, with the ids that the engine itself says. The target is SmolLM2's first two layers, for speed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.faults.conftest import ENVIRONMENT
from tests.interop.running import healthy
from torchspec.export.llamacpp import LlamaCpp
from torchspec.transfer.mooncake_master import free_port

LLAMACPP = LlamaCpp(Path(__file__).parents[2] / ".interop" / "llamacpp")
PROMPTS, TOKENS, IN_FLIGHT, DEADLINE = 40, 24, 2, 600.0


@pytest.fixture(scope="module")
def target(target_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("servers") / "target"
    AutoModelForCausalLM.from_pretrained(target_folder, num_hidden_layers=2, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(target_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def servers(target) -> list[tuple[str, subprocess.Popen]]:
    """URL and process of each."""
    file = target.parent / "target.gguf"
    LLAMACPP.convert(target, file, "float32", sys.executable)
    started = []
    for _ in range(2):
        port = free_port("127.0.0.1")
        words = ["--model", str(file), "--parallel", str(IN_FLIGHT), "--ctx-size", str(IN_FLIGHT * 256), "--threads", "1"]
        command = [str(LLAMACPP.server), *words, "--host", "127.0.0.1", "--port", str(port)]
        started.append((f"http://127.0.0.1:{port}", subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)))
    for url, process in started:
        until(lambda url=url: healthy(url), process)
    yield started
    for _, process in started:
        process.kill()


def until(what, process: subprocess.Popen) -> None:
    end = time.monotonic() + DEADLINE
    while not what():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(process.stdout.read() if process.stdout else "no server")
        time.sleep(0.02)  # asking without a pause would take a core from the server


def client(target: Path, source: Path, out: Path, urls: list[str]) -> subprocess.Popen:
    words = ["-t", str(target), "-o", str(out), "--max-new-tokens", str(TOKENS), "--dtype", "float32", "--in-flight", str(IN_FLIGHT)]
    command = [sys.executable, "-m", "torchspec", "regenerate", str(source), *words, *(word for url in urls for word in ("--server", url))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, text=True)


def answered(out: Path) -> int:
    return out.read_text().count("\n") if out.is_file() else 0


def test_a_dead_server_and_a_killed_client_lose_and_double_nothing(target, servers, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked = [f"Question number {i}: what makes {i * 7} and {i * i} a pair?" for i in range(PROMPTS)]
    source.write_text("".join(json.dumps({"messages": [{"role": "user", "content": question}]}) + "\n" for question in asked))
    (living, _), (dying, process) = servers
    first = client(target, source, out, [living, dying])
    until(lambda: answered(out) >= 6, first)
    process.kill()
    until(lambda: answered(out) >= 6 + 4 * IN_FLIGHT, first)  # more than was in flight: the other one goes on
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    kept = answered(out)
    assert kept < PROMPTS
    second = client(target, source, out, [living])
    said = " ".join(second.communicate(timeout=DEADLINE)[0].split())
    assert second.returncode == 0, said
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["messages"][0]["content"] for row in rows) == sorted(asked)
    assert f"{PROMPTS - kept} answers written ({kept} conversations were there)" in said
    assert float(re.search(r"on-policy share ([\d.]+)%", said)[1]) > 99  # Transformers' own choice, but for a tie in float32
    for row in rows:
        assert row["response_ids"] == the_engines_own(living, row["prompt_ids"])


def the_engines_own(url: str, prompt: list[int]) -> list[int]:
    """Greedy, by a request that is none of ours."""
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "top_k": 1, "return_tokens": True, "cache_prompt": False}
    return requests.post(f"{url}/completion", json=body, timeout=DEADLINE).json()["tokens"]
