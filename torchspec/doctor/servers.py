"""Each server that a run is to capture with: what it is, and whether one prompt's features are those of the target as it lies here."""

import time
from pathlib import Path

import torch

from torchspec.capture.base import CaptureSpec
from torchspec.capture.check import check_features
from torchspec.capture.engine import capture_spec
from torchspec.capture.hf import HFCapture
from torchspec.capture.server import ServerCapture
from torchspec.capture.spread import open_server
from torchspec.config import RunConfig
from torchspec.doctor.finding import Finding
from torchspec.errors import UserError
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.records import Prompt
from torchspec.transfer.codec import decode, encode


def servers(config: RunConfig, folder: Path, layer_ids: tuple[int, ...], prompts: list[Prompt]) -> list[Finding]:
    """A row for each; prompts: some of the training data, of which the first is compared with Transformers."""
    inference, device = config.inference, resolve_device(config.model.device)
    spec = capture_spec(config, folder, layer_ids, torch.device("cpu"))
    oracle = HFCapture(
        CaptureSpec(folder, layer_ids, resolve_dtype(config.model.dtype), device, trust_remote_code=config.model.trust_remote_code)
    )
    return [_row(inference.inference_engine_type, spec, url, oracle, prompts) for url in inference.servers]


def _row(name: str, spec: CaptureSpec, url: str, oracle: HFCapture, prompts: list[Prompt]) -> Finding:
    try:
        server = open_server(name, spec, url)
        server.verify(prompts)
        seconds = _compare(server, spec, oracle, prompts[0])
    except UserError as error:
        return Finding("servers", url, "does not fit", "bad", str(error))
    way = "shared memory" if server.port is None else server.port
    found = f"{server.producer}, layers {list(spec.layer_ids)}, this target by its contents"
    return Finding("servers", url, f"{found}; {len(prompts[0].ids)} tokens are Transformers' own, {1000 * seconds:.0f} ms by way of {way}")


def _compare(server: ServerCapture, spec: CaptureSpec, oracle: HFCapture, prompt: Prompt) -> float:
    """Seconds of a round trip; raises where a state is not the target's. fp8 is judged as bfloat16, whose tolerance holds its rounding."""
    started = time.perf_counter()
    wire = encode(server.capture(prompt), spec.fp8)
    seconds = time.perf_counter() - started
    check_features(decode(wire, prompt, oracle.device, torch.bfloat16), oracle)
    return seconds
