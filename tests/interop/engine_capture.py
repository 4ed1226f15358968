"""Runs inside an engine's own environment: features of prompts through our backend. usage: engine_capture.py REQUEST.json ANSWER.json"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from torchspec.capture.base import CaptureSpec, open_capture
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import decode, encode


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    spec = CaptureSpec(Path(request["target"]), tuple(request["layer_ids"]), torch.bfloat16, max_length=1024, fp8=request["fp8"])
    backend = open_capture(request["engine"], spec)
    features, started = {}, time.perf_counter()
    prompts = [Prompt(index, torch.tensor(ids), torch.arange(len(ids)) > 0) for index, ids in enumerate(request["prompts"])]
    for prompt in prompts:
        features[str(prompt.index)] = widened(backend.capture(prompt))
    seconds = time.perf_counter() - started
    batch = backend.capture_batch(prompts[:4])
    backend.verify(prompts)
    save_file(features, request["file"])
    answer = {
        "producer": backend.producer,
        "agreement": sum(backend.truth.recent) / len(backend.truth.recent),
        "tokens_per_second": sum(map(len, request["prompts"])) / seconds,
        "largest_batch_error": max(relative_error(widened(f), features[str(f.prompt.index)], len(spec.layer_ids)) for f in batch),
        "left_in_shared_memory": len(list(backend.folder.iterdir())),
    }
    backend.close()
    Path(answer_file).write_text(json.dumps(answer))


def widened(features: Features) -> torch.Tensor:
    """As a trainer gets them, in memory that outlives the engine's."""
    return decode(encode(features, fp8=False), features.prompt, torch.device("cpu"), torch.bfloat16).context.clone()


def relative_error(got: torch.Tensor, expected: torch.Tensor, layers: int) -> float:
    """Token by token and layer by layer, the largest."""
    got, expected = (x.float().unflatten(1, (layers, -1)) for x in (got, expected))
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


if __name__ == "__main__":
    main(*sys.argv[1:])
