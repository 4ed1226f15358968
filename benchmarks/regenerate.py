"""What `torchspec regenerate` adds to its engine: python benchmarks/regenerate.py TARGET DATA [CONVERSATIONS] [PYTHON_OF_VLLM]

The first CONVERSATIONS (24) of DATA (torchspec/demo/prompts_heldout.jsonl) are answered greedily and at most 64 tokens long, in two ways
that take turns: `regenerate` from file to file, and the bare engine over the same token ids. Without PYTHON_OF_VLLM the engine is
Transformers' `generate`, eight at a time; with it vLLM's server, 32 requests in flight, and bare means requests that are written
beforehand and whose replies nobody reads. Medians over rounds. Writes benchmarks/results/regenerate.json, or regenerate_vllm.json.
"""

import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
import torch
from in_turns import in_turns

from torchspec.chat.format import ChatFormat
from torchspec.regenerate.answering import Engine, open_answering
from torchspec.regenerate.here import Here
from torchspec.regenerate.protocol import PROTOCOLS, Request
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.run import Wanted, regenerate
from torchspec.regenerate.servers import Servers
from torchspec.regenerate.turns import Answering, Sampling, Turns

ROUNDS, BATCH, IN_FLIGHT, MAX_NEW_TOKENS = 3, 8, 32, 64
UNCACHED = "--no-enable-prefix-caching --max-model-len 2048 --gpu-memory-utilization 0.3"  # every round asks the same prompts
RESULTS = Path(__file__).parent / "results"


def main(target: Path, data: str, count: int, vllm: str | None) -> None:
    turns = Turns(ChatFormat.load(target, None, False), Sampling(MAX_NEW_TOKENS, (0.0,), 0), max_length=2048)
    engine = Engine("vllm" if vllm else "hf", [], IN_FLIGHT, False, BATCH, vllm, UNCACHED, None, 1)
    with tempfile.TemporaryDirectory() as scratch:
        here = Here(target, torch.bfloat16, torch.device("cpu"))
        with open_answering(turns, engine, here, Path(scratch) / "out.jsonl") as answering:
            numbers = iter(range(ROUNDS + 2))

            def whole() -> list[dict]:
                out = Path(scratch) / f"{next(numbers)}.jsonl"
                regenerate([data], out, answering, Wanted(limit=count))
                return [json.loads(line) for line in out.read_text().splitlines()]

            rows = whole()  # the first round warms up, and says what is asked
            with bare(answering, rows) as alone:
                seconds = in_turns({"regenerate": whole, "engine alone": alone}, ROUNDS)
    tokens = sum(len(row["response_ids"]) for row in rows)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "engine": answering.made_with,
        "conversations": count,
        "tokens": tokens,
        "tokens_per_second": {name: tokens / statistics.median(times) for name, times in seconds.items()},
        "overhead": statistics.median(a / b - 1 for a, b in zip(seconds["regenerate"], seconds["engine alone"], strict=True)),
        "seconds": seconds,
    }
    (RESULTS / ("regenerate_vllm.json" if vllm else "regenerate.json")).write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


@contextmanager
def bare(answering: Answering, rows: list[dict]) -> Iterator[Callable]:
    """The engine over the prompts of these rows, and nothing else. Tokens that follow a stop token count for neither way."""
    prompts = [row["prompt_ids"] for row in rows]
    if isinstance(answering, Regenerator):
        batches = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
        yield lambda: [answering.generate(batch, 0.0, 0) for batch in batches]
        return
    with ThreadPoolExecutor(IN_FLIGHT) as pool, requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=IN_FLIGHT))
        url, bodies = asked(answering, prompts)
        yield lambda: list(pool.map(lambda body: session.post(url, data=body, headers={"Content-Type": "application/json"}), bodies))


def asked(servers: Servers, prompts: list[list[int]]) -> tuple[str, list[bytes]]:
    server, stop = servers.servers[0], sorted(servers.turns.stop)
    requested = [Request(prompt, MAX_NEW_TOKENS, 0.0, 0, stop) for prompt in prompts]
    bodies = [json.dumps(PROTOCOLS["vllm"].body(server.model, request)).encode() for request in requested]
    return f"{server.url}/{server.protocol.path}", bodies


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 24, sys.argv[4] if len(sys.argv) > 4 else None)
