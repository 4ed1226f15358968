"""Runs inside an engine's own environment: features of prompts through our backend. usage: engine_capture.py REQUEST.json ANSWER.json"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.interop.plain_server import plain_server
from torchspec.capture.base import CaptureSpec, open_capture
from torchspec.errors import UserError
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import decode, encode

SERVER_FOLDER = Path("/dev/shm/torchspec-server")  # of a server that was started by hand


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    spec = CaptureSpec(
        Path(request["target"]), tuple(request["layer_ids"]), torch.bfloat16, max_length=1024, server_url=request["server_url"],
        fp8=request["fp8"],
    )  # fmt: skip
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
    if request["engine"] == "sgl":
        answer |= said_of_servers(spec)
    Path(answer_file).write_text(json.dumps(answer))


def said_of_servers(spec: CaptureSpec) -> dict:
    """The command of a server that captures; where one is running, the sentence that a plain one gets."""
    from torchspec.capture.sglang.backend import command  # imports SGLang, which vLLM's environment has not

    said = {"command": command(spec, list(spec.layer_ids), SERVER_FOLDER)}
    if spec.server_url is not None:
        with plain_server(spec.server_url) as url:
            try:
                open_capture("sgl", replace(spec, server_url=url))
            except UserError as error:
                said["refusal"] = str(error)
    return said


def widened(features: Features) -> torch.Tensor:
    """As a trainer gets them, in memory that outlives the engine's."""
    return decode(encode(features, fp8=False), features.prompt, torch.device("cpu"), torch.bfloat16).context.clone()


def relative_error(got: torch.Tensor, expected: torch.Tensor, layers: int) -> float:
    """Token by token and layer by layer, the largest."""
    got, expected = (x.float().unflatten(1, (layers, -1)) for x in (got, expected))
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


if __name__ == "__main__":
    main(*sys.argv[1:])
