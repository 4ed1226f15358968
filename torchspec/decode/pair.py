"""A draft folder and its target, loaded for inference on one device."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.errors import UserError
from torchspec.importers.folder import read_config
from torchspec.importers.read import read_draft
from torchspec.methods.base import Drafter, Method, method_class
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.nn.packed import pack_linears
from torchspec.target.fetch import resolve_draft, resolve_target
from torchspec.target.frozen import FrozenTarget


@dataclass
class Pair:
    """A target in this process and the draft that speeds it up."""

    draft: Path
    folder: Path  # of the target
    target: HFCapture
    method: Method
    model: nn.Module

    def drafter(self, least_survival: float = 0.0) -> Drafter:
        """least_survival: drafting stops where the chance that all drafts up to the next are accepted falls below; 0: never."""
        if not least_survival:
            return self.method.drafter(self.model)
        if not self.method.confident:
            raise UserError(
                f"--least-survival {least_survival} asks the draft how likely its tokens are accepted, but {self.draft} has no confidence "
                "head; leave it out"
            )
        return self.method.drafter(self.model, least_survival)


def load_pair(
    draft: Path, target: str, dtype_name: str, device_name: str, trust_remote_code: bool, draft_tokens: int | None = None
) -> Pair:
    """Loads a draft, ours or another project's, checks that it fits the target, and loads the target with the draft's layers captured.

    draft_tokens: proposed per step; none: as many as the draft was trained for.
    """
    dtype, device = resolve_dtype(dtype_name), resolve_device(device_name)
    refuse_checkpoint(draft)
    draft = resolve_draft(str(draft))
    values, folder = read_config(draft), resolve_target(target)
    method, model = load_draft(draft, values, FrozenTarget.load(folder, dtype, device, trust_remote_code), dtype, draft_tokens)
    capture = HFCapture(CaptureSpec(folder, method.layer_ids, dtype, device, trust_remote_code=trust_remote_code))
    capture.new_cache()  # a target that cannot be decoded here is refused before anything is measured
    return Pair(draft, folder, capture, method, model)


def refuse_checkpoint(draft: Path) -> None:
    """A run keeps its masters, in shards, which no server reads."""
    for written in ("state.json", "iter_*/state.json", "checkpoints/iter_*/state.json"):
        if any(draft.glob(written)):
            checkpoint = draft / "checkpoints" if written.startswith("checkpoints") else draft
            raise UserError(
                f"draft {draft} holds checkpoints of a run and no draft yet: write one with "
                f"`torchspec export --checkpoint {checkpoint} -o DRAFT`, and give that folder"
            )


def load_draft(draft: Path, values: dict, target: FrozenTarget, dtype: torch.dtype, draft_tokens: int | None) -> tuple[Method, nn.Module]:
    """values: of its config.json. The draft stands where the target's tables do, for inference."""
    read = read_draft(draft, values, target, draft_tokens)
    method = method_class(read.method).from_config(read.config, read.target)
    model = method.skeleton()
    _load_weights(model, read.tensors, draft)
    model = pack_linears(cast_parameters(model.to(target.head.device), dtype).eval().requires_grad_(False))
    return method, model


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters only: `model.to(dtype)` would round the rotary frequencies as well, and serve other positions than were trained."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _load_weights(model: nn.Module, weights: dict[str, Tensor], draft: Path) -> None:
    """Every tensor must be there, with its shape, and no other: servers skip and zero-fill silently, so nothing may slip here."""
    expected = model.state_dict()
    problems = [f"missing {n}" for n in expected.keys() - weights.keys()] + [f"unexpected {n}" for n in weights.keys() - expected.keys()]
    problems += [
        f"{n} {tuple(weights[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in expected.keys() & weights.keys()
        if weights[n].shape != expected[n].shape
    ]
    if problems:
        raise UserError(f"the tensors of draft {draft} do not fit its config.json: {', '.join(sorted(problems)[:4])}")
    model.load_state_dict(weights)
