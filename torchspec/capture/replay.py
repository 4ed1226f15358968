"""Features kept on disk for repeated experiments on the same text: bounded, checked against their manifest, halved by fp8.

FOLDER/  manifest.json (target, layers, dtype, producer) · 3f/3fa9...e1.safetensors, one per prompt, named by its tokens
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from torchspec.capture.base import Capture, CaptureSpec
from torchspec.errors import ContractError, TransferDown
from torchspec.files.contents import folder_key
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import Wire, decode, encode


class ReplayCapture:
    """Keeps what `inner` captures until the folder holds `limit_bytes`; from then on new prompts are captured and not kept."""

    def __init__(self, inner: Capture, spec: CaptureSpec, folder: Path, limit_bytes: int, fp8: bool):
        self.inner, self.folder, self.limit_bytes, self.fp8 = inner, folder, limit_bytes, fp8
        self.layer_ids, self.producer, self.device = inner.layer_ids, inner.producer, spec.device
        self.dtype = spec.dtype
        self.stored = "float8_e4m3fn" if fp8 else str(spec.dtype).removeprefix("torch.")
        manifest = {
            "target": folder_key(spec.folder),
            "layer_ids": list(inner.layer_ids),
            "dtype": "fp8" if fp8 else self.stored,
            "producer": inner.producer,
        }
        self._agree(manifest)
        self.bytes = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))

    def capture(self, prompt: Prompt) -> Features:
        name = hashlib.sha256(prompt.ids.numpy().tobytes()).hexdigest()
        file = self.folder / name[:2] / f"{name}.safetensors"
        if file.is_file():
            return self._read(file, prompt)
        wire = encode(self.inner.capture(prompt), self.fp8)
        if self.bytes + wire.nbytes <= self.limit_bytes:
            self._write(file, wire)
            self.bytes += file.stat().st_size
        return decode(wire, prompt, self.device, self.dtype)  # what a second run will read, rounding included

    def capture_batch(self, prompts: Sequence[Prompt]) -> list[Features]:
        """What is kept for other runs, with other neighbours, is captured alone."""
        return [self.capture(prompt) for prompt in prompts]

    def verify(self, prompts: list[Prompt]) -> None:
        self.inner.verify(prompts)

    def _agree(self, manifest: dict) -> None:
        """Several workers may come at once: one of them writes the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "manifest.json"
        with FileLock(self.folder / ".manifest.lock"):
            if not file.is_file():
                if any(self.folder.glob("*/*.safetensors")):
                    raise ContractError(f"{self.folder} holds features, but no manifest.json of them; set another inference.replay_dir")
                partial = _partial(file)
                partial.write_text(json.dumps(manifest, indent=2))
                partial.rename(file)
        try:
            found = json.loads(file.read_text())
            changed = [f"{key}: {found.get(key)!r} -> {manifest[key]!r}" for key in manifest if found.get(key) != manifest[key]]
        except (ValueError, AttributeError) as error:
            raise ContractError(f"{file} is damaged ({error}); set another inference.replay_dir") from error
        if changed:
            raise ContractError(f"{self.folder} holds features of another kind ({'; '.join(changed)}); set another inference.replay_dir")

    def _write(self, file: Path, wire: Wire) -> None:
        tensors = {"data": torch.from_numpy(wire.data)}
        if wire.scales is not None:
            tensors["scales"] = torch.from_numpy(wire.scales)
        partial = _partial(file)
        try:
            file.parent.mkdir(exist_ok=True)
            save_file(tensors, partial)
            partial.rename(file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise TransferDown(
                f"{self.folder} keeps no more features ({error}); free some space, lower inference.replay_gib or set another replay_dir"
            ) from error

    def _read(self, file: Path, prompt: Prompt) -> Features:
        try:
            tensors, rows = load_file(file), len(prompt.ids)
        except SafetensorError as error:
            raise ContractError(f"{file} is damaged ({error}); delete it, and its features are captured again") from error
        width = tensors["data"].numel() // rows // getattr(torch, self.stored).itemsize
        scales = tensors["scales"].numpy() if self.fp8 else None
        wire = Wire(tensors["data"].numpy(), (rows, width), self.stored, scales, self.layer_ids, self.producer)
        return decode(wire, prompt, self.device, self.dtype).check()


def _partial(file: Path) -> Path:
    """Several workers may write the same file at a time."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}")
