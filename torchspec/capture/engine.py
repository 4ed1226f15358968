"""A run's own engine, from its config: what runs the target, on what share of the device, behind a disk cache where there is one."""

from pathlib import Path

import torch

from torchspec.capture.base import OWN_DEVICE, SHARED_DEVICE, Capture, CaptureSpec, open_capture
from torchspec.capture.spread import open_servers
from torchspec.config import RunConfig
from torchspec.nn.device import resolve_dtype
from torchspec.target.frozen import FrozenTarget


def capture_spec(
    config: RunConfig, folder: Path, layer_ids: tuple[int, ...], device: torch.device, target: FrozenTarget | None = None
) -> CaptureSpec:
    """target: where this process has it."""
    inference = config.inference
    return CaptureSpec(
        folder, layer_ids, resolve_dtype(config.model.dtype), device, inference.gpus_per_worker, memory_fraction(config, device),
        config.dataset.max_length, config.model.trust_remote_code, inference.transfer_dtype == "fp8", target,
    )  # fmt: skip


def memory_fraction(config: RunConfig, device: torch.device) -> float:
    """Of each device, for an engine. Only a capture worker on a GPU is alone there; on a CPU all of them share the host's memory."""
    if config.inference.memory_fraction is not None:
        return config.inference.memory_fraction
    return OWN_DEVICE if config.inference.num_workers and device.type == "cuda" else SHARED_DEVICE


def open_engine(config: RunConfig, spec: CaptureSpec) -> Capture:
    """The capture backend of a run, behind its disk cache where there is one."""
    inference, name = config.inference, config.inference.inference_engine_type
    engine = open_servers(name, spec, inference.servers) if inference.servers else open_capture(name, spec)
    if inference.replay_dir is None:
        return engine
    from torchspec.capture.replay import ReplayCapture

    limit = int(inference.replay_gib * 2**30)
    return ReplayCapture(engine, spec, Path(inference.replay_dir), limit, spec.fp8)
