"""The pull stream by itself, with capture workers that only pretend: stall of the trainer, bytes per second, scaling.

    python benchmarks/stream.py                    # writes benchmarks/results/stream.json

Three questions, all answered side by side in one run, medians of several rounds:
1. Does a trainer wait when its workers are faster than it?            (share of time waiting)
2. What does the transfer move, beside a memcpy of the same tensors?  (bytes per second)
3. Do two workers deliver twice what one delivers?                     (samples per second of workers that sleep)
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import ray
import torch

from torchspec.config import RunConfig
from torchspec.data.plan import MicroBatch
from torchspec.launch.remote import RemoteCapture
from torchspec.launch.workers import WorkerPool
from torchspec.records import Features, Prompt
from torchspec.training.stream import FeatureStream
from torchspec.transfer.base import open_transfer
from torchspec.transfer.codec import encode
from torchspec.transfer.mooncake_master import run_master

TOKENS, WIDTH, ROUNDS = 2048, 5 * 4096, 5  # Qwen3-8B's features with five layers: 84 MB per sample of 2,048 tokens
LAYERS = (1, 9, 17, 25, 33)


class FakeWorker:
    """Answers after `seconds` with features that were made once. Sleeping stands for a device that computes."""

    def __init__(self, tokens: int, width: int, seconds: float, run: RunConfig):
        self.seconds, self.fp8, self.transfer = seconds, run.inference.transfer_dtype == "fp8", open_transfer(run, sends=True)
        self.context = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)

    def producer(self) -> str:
        return "fake"

    def capture(self, prompts: list[Prompt]) -> list:
        time.sleep(self.seconds * len(prompts))
        return [self.transfer.put(encode(Features(prompt, self.context, LAYERS, "fake"), self.fp8)) for prompt in prompts]


class Prompts:
    def __init__(self, tokens: int):
        self.tokens = tokens

    def __getitem__(self, index: int) -> Prompt:
        ids = torch.arange(self.tokens)
        return Prompt(index, ids, ids > 0)


def config(**inference) -> RunConfig:
    values = {"output_dir": "/tmp/torchspec-stream", "model": {"target_model_path": "none"}, "dataset": {"train_data_path": "none"}}
    return RunConfig(**values, inference={"num_workers": 1, **inference})


def stream(run: RunConfig, workers: int, samples: int, seconds: float, tokens: int, width: int, depth: int = 4) -> FeatureStream:
    actors = [ray.remote(FakeWorker).options(num_cpus=0.01).remote(tokens, width, seconds, run) for _ in range(workers)]
    source = RemoteCapture(WorkerPool(actors, open_transfer(run, sends=False)), run, LAYERS, width, samples, torch.device("cpu"))
    plan = [MicroBatch(0, (i,)) for i in range(samples)]
    return FeatureStream(Prompts(tokens), source, plan, 0, depth)


def stall() -> float:
    """Workers need 20 ms, the trainer 40 ms: it should never wait."""
    shares = []
    for _ in range(ROUNDS):
        batches = iter(feed := stream(config(), 1, 60, 0.02, 256, 1280))
        for _ in range(5):  # warm-up: the first requests fill the pipe
            next(batches)
        feed.meter.take()
        for _ in range(50):
            next(batches)
            time.sleep(0.04)
        shares.append(feed.meter.take()["wait"])
    return statistics.median(shares)


def bytes_per_second(run: RunConfig) -> float:
    rates = []
    for _ in range(ROUNDS):
        batches = iter(stream(run, 1, 14, 0.0, TOKENS, WIDTH, depth=2))
        for _ in range(4):
            next(batches)
        started = time.perf_counter()
        moved = sum(next(batches).context.nbytes for _ in range(10))
        rates.append(moved / (time.perf_counter() - started))
    return statistics.median(rates)


def over_mooncake() -> float:
    with run_master(config(transfer="mooncake"), "127.0.0.1") as run:
        return bytes_per_second(run)


def memcpy() -> float:
    source, rates = torch.randn(TOKENS, WIDTH).to(torch.bfloat16), []
    target = torch.empty_like(source)
    for _ in range(3 * ROUNDS):
        started = time.perf_counter()
        np.copyto(target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy())
        rates.append(source.nbytes / (time.perf_counter() - started))
    return statistics.median(rates)


def samples_per_second(workers: int) -> float:
    """A trainer that does nothing, workers that sleep 50 ms a sample: what arrives is what they deliver."""
    rates = []
    for _ in range(ROUNDS):
        batches = iter(stream(config(), workers, 90, 0.05, 128, 1280, depth=8))
        for _ in range(20):
            next(batches)
        started = time.perf_counter()
        for _ in range(60):
            next(batches)
        rates.append(60 / (time.perf_counter() - started))
    return statistics.median(rates)


def main() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    one, two, plain = samples_per_second(1), samples_per_second(2), memcpy()
    result = {
        "command": "python benchmarks/stream.py",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ray {ray.__version__}",
        "stall": stall(),
        "samples_per_second": {"one worker": one, "two workers": two, "ratio": two / one},
        "bytes_per_second": {
            "memcpy": plain,
            "ray": bytes_per_second(config()),
            "ray, fp8 (bytes of the features, not of the wire)": bytes_per_second(config(transfer_dtype="fp8")),
            "mooncake over TCP": over_mooncake(),
        },
    }
    ray.shutdown()
    file = Path(__file__).parent / "results" / "stream.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    json.dump(result, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
