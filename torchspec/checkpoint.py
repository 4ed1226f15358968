"""Checkpoints: complete or absent, rotated, resumed exactly.

checkpoints/
  latest_checkpointed_iteration.txt
  best.json                      step and tau of the best evaluation
  iter_0000400/  model.safetensors (float32 masters) · optimizer.safetensors · config.json (the draft) · run.json · state.json
"""

import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchspec.config import RunConfig
from torchspec.errors import UserError

LATEST, BEST = "latest_checkpointed_iteration.txt", "best.json"


@dataclass
class TrainState:
    """Everything but the tensors. The stream's position and the learning rate follow from `step`."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # tokens trained on, all epochs
    seconds: float = 0.0  # wall-clock of training, over all resumptions
    best_tau: float = 0.0
    best_step: int = 0


def folder(root: Path, step: int) -> Path:
    return root / f"iter_{step:07d}"


def save(
    root: Path,
    state: TrainState,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    config: RunConfig,
    draft_config,
    data_facts: dict,
) -> Path:
    """Written aside and renamed: a kill at any moment leaves the old checkpoint or the new one, never half of one."""
    final = folder(root, state.step)
    if final.exists():
        return final
    partial = root / f".partial_{state.step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: p.detach() for name, p in model.named_parameters()}, partial / "model.safetensors", metadata={"format": "pt"})
    save_file(_moments(model, optimizers), partial / "optimizer.safetensors")
    draft_config.save_pretrained(partial)
    (partial / "run.json").write_text(config.model_dump_json(indent=2))
    (partial / "data.json").write_text(json.dumps(data_facts, indent=2))
    (partial / "state.json").write_text(json.dumps(asdict(state), indent=2))
    partial.rename(final)
    _replace(root / LATEST, str(state.step))
    return final


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    partial.rename(file)


def _moments(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def record_best(root: Path, state: TrainState) -> None:
    _replace(root / BEST, json.dumps({"step": state.best_step, "tau": state.best_tau}))


def rotate(root: Path, keep: int, best_step: int) -> None:
    """Deletes all but the newest `keep` and the best, oldest first. A failed delete costs disk, not the run."""
    for old in sorted(root.glob("iter_*"))[:-keep]:
        if old == folder(root, best_step):
            continue
        try:
            shutil.rmtree(old)
        except OSError as error:
            warnings.warn(f"checkpoint {old} could not be deleted ({error}); delete it by hand", stacklevel=2)


def latest(root: Path) -> Path | None:
    pointer = root / LATEST
    return folder(root, int(pointer.read_text())) if pointer.is_file() else None


def best(root: Path) -> Path:
    """The checkpoint with the highest held-out tau, or the latest where nothing was evaluated."""
    if (root / BEST).is_file():
        return folder(root, json.loads((root / BEST).read_text())["step"])
    newest = latest(root)
    if newest is None:
        raise UserError(f"{root.resolve()} holds no checkpoint (no {LATEST}); give a checkpoints folder or one iter_NNNNNNN folder")
    return newest


def load(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], config: RunConfig) -> TrainState:
    """Restores weights and moments in place; refuses a checkpoint of another run."""
    saved = RunConfig.model_validate_json((path / "run.json").read_text()).resumable_fields()
    wanted = config.resumable_fields()
    changed = [f"{s}.{key}: {saved[s][key]!r} -> {wanted[s][key]!r}" for s in saved for key in saved[s] if saved[s][key] != wanted[s][key]]
    if changed:
        raise UserError(f"{path} was made by a different run ({'; '.join(changed)}); set another output_dir or restore these values")
    model.load_state_dict(load_file(path / "model.safetensors"))
    parameters = dict(model.named_parameters())
    owner = {parameter: optimizer for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, moment = key.partition("/")
        owner[parameters[name]].state[parameters[name]][moment] = value
    return TrainState(**json.loads((path / "state.json").read_text()))
