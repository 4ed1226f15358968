"""Runs inside vLLM's own environment: features of prompts through our backend. usage: vllm_capture.py REQUEST.json ANSWER.json"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from torchspec.capture.base import CaptureSpec, open_capture
from torchspec.records import Prompt


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    spec = CaptureSpec(Path(request["target"]), tuple(request["layer_ids"]), torch.bfloat16, max_length=1024)
    backend = open_capture("vllm", spec)
    features, started = {}, time.perf_counter()
    for index, ids in enumerate(request["prompts"]):
        prompt = Prompt(index, torch.tensor(ids), torch.arange(len(ids)) > 0)
        features[str(index)] = backend.capture(prompt).context.clone()
    seconds = time.perf_counter() - started
    backend.truth.conclude()
    save_file(features, request["file"])
    answer = {
        "producer": backend.producer,
        "agreement": sum(backend.truth.recent) / len(backend.truth.recent),
        "tokens_per_second": sum(map(len, request["prompts"])) / seconds,
        "left_in_shared_memory": len(list(backend.folder.iterdir())),
    }
    backend.close()
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
