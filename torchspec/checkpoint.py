"""Checkpoints: complete or absent, written beside the training, rotated, resumed exactly, by any number of ranks.

checkpoints/
  latest_checkpointed_iteration.txt
  best.json                      step and tau of the best evaluation
  iter_0000400/
    shard-*.safetensors          one file per rank: float32 masters `model/NAME` and moments `optimizer/NAME/MOMENT`
    config.json (the draft) · run.json · data.json · state.json

Tensors go through PyTorch's distributed checkpoint (DCP) in its safetensors form, so a checkpoint holds nothing executable.
"""

import json
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

from torchspec.config import RunConfig
from torchspec.distributed import World
from torchspec.errors import UserError
from torchspec.finite import check_finite, is_finite

# DCP says so at every save and load of a single process, which is a mode of its own here
warnings.filterwarnings("ignore", ".*assuming the intent is to (save|load) in a single process", UserWarning)

LATEST, BEST = "latest_checkpointed_iteration.txt", "best.json"


@dataclass
class TrainState:
    """Everything but the tensors. The stream's position and the learning rate follow from `step`."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # tokens trained on, all epochs and ranks
    seconds: float = 0.0  # wall-clock of training, over all resumptions
    best_tau: float = 0.0
    best_step: int = 0
    micro_batches_per_step: int = 1  # over all ranks; the position in the data follows from it and `step`


def folder(root: Path, step: int) -> Path:
    return root / f"iter_{step:07d}"


class Saver:
    """Saves while training goes on: tensors are copied at once and written by a thread, `finish` makes the result visible."""

    def __init__(self, root: Path, config: RunConfig, world: World, draft_config, data_facts: dict):
        self.root, self.config, self.world = root, config, world
        self.draft_config, self.data_facts = draft_config, data_facts
        # the thread's collectives must not meet the loop's
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        self.writing: Future | None = None
        self.state: TrainState | None = None

    def save(self, state: TrainState, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Every rank calls it. A kill at any moment leaves the old checkpoint or the new one, never half of one."""
        self.finish()
        self.state, saved = TrainState(**asdict(state)), tensors(model, optimizers)
        self._check_finite(saved)
        partial = self._partial(state.step)
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self.draft_config.save_pretrained(partial)
            (partial / "run.json").write_text(self.config.model_dump_json(indent=2))
            (partial / "data.json").write_text(json.dumps(self.data_facts, indent=2))
            (partial / "state.json").write_text(json.dumps(asdict(state), indent=2))
        self.world.barrier()
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        started = dcp.async_save(saved, storage_writer=writer, process_group=self.group, no_dist=self.world.size == 1)
        self.writing = started.upload_completion if isinstance(started, AsyncSaveResponse) else started

    def finish_if_written(self) -> None:
        if self.writing is not None and self.writing.done():
            self.finish()

    def finish(self) -> None:
        """Waits for the files, renames, points to the new checkpoint, rotates: an old one goes only after the new one is complete."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        _written(writing, self._partial(self.state.step))
        if self.world.is_main:  # its result comes after every rank's
            complete = folder(self.root, self.state.step)
            if complete.exists():  # of a run that was killed before it was published, or that was sent back to an older one
                shutil.rmtree(complete)
            self._partial(self.state.step).rename(complete)
        self._publish()

    def _check_finite(self, saved: dict[str, Tensor]) -> None:
        """Ranks stop together, though the broken numbers may be one rank's."""
        broken = [name for name, value in saved.items() if not is_finite(value)]
        if self.world.sum(torch.tensor(len(broken))) > 0:
            where = f" in {', '.join(broken[:3])}" if broken else ""
            raise UserError(
                f"after step {self.state.step} the draft holds NaN or infinity{where}, and nothing was saved since; "
                "lower training.learning_rate or raise training.warmup_ratio"
            )

    def _publish(self) -> None:
        if not self.world.is_main:
            return
        _replace(self.root / LATEST, str(self.state.step))
        if self.state.best_step == self.state.step:
            _replace(self.root / BEST, json.dumps({"step": self.state.best_step, "tau": self.state.best_tau}))
        rotate(self.root, self.config.training.max_checkpoints, self.state.best_step, self.state.step)

    def _partial(self, step: int) -> Path:
        return self.root / f".partial_{step}"


def _written(writing: Future, partial: Path) -> None:
    """Waits for a checkpoint's files. Half of them are no use to anybody, and the disk may need the room."""
    try:
        writing.result()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
        if not causes:
            raise
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(causes[0].errno, causes[0].strerror, str(partial)) from error


def tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All tensors of a run under one name each; sharded ones stay sharded."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"optimizer/{names[parameter]}/{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    return {f"model/{name}": value for name, value in model.state_dict().items()} | moments


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text)
    partial.rename(file)


def rotate(root: Path, keep: int, best_step: int, newest: int) -> None:
    """Deletes all but the newest `keep` and the best, oldest first. A failed delete costs disk, not the run.

    What lies beyond `newest` was made before the run was sent back to an older checkpoint: it counts for nothing here.
    """
    by_age = sorted((path for path in root.glob("iter_*") if _step(path) <= newest), key=_step)
    for old in by_age[:-keep]:
        if old == folder(root, best_step):
            continue
        try:
            shutil.rmtree(old)
        except OSError as error:
            warnings.warn(f"checkpoint {old} could not be deleted ({error}); delete it by hand", stacklevel=2)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("iter_"))


def latest(root: Path) -> Path | None:
    pointer = root / LATEST
    if not pointer.is_file():
        return None
    if not pointer.read_text().strip().isdecimal():
        raise UserError(f"{pointer.resolve()} holds no step; write that of a checkpoint into it: the N of an iter_N folder beside it")
    return folder(root, int(pointer.read_text()))


def best(root: Path) -> Path:
    """The checkpoint with the highest held-out tau, or the latest where nothing was evaluated."""
    if (root / BEST).is_file():
        return folder(root, json.loads((root / BEST).read_text())["step"])
    newest = latest(root)
    if newest is None:
        raise UserError(f"{root.resolve()} holds no checkpoint (no {LATEST}); give a checkpoints folder or one iter_NNNNNNN folder")
    return newest


def read_weights(path: Path) -> dict[str, Tensor]:
    """The whole float32 masters of a checkpoint, whatever number of ranks wrote it; needs no process group."""
    _check_shards(path)
    metadata = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    weights = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in metadata.items() if name.startswith("model/")}
    _read_tensors(path, weights, alone=True)
    check_finite(weights, path, "take an older checkpoint")
    return {name.removeprefix("model/"): value for name, value in weights.items()}


def load(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], world: World) -> TrainState:
    """Restores weights and moments in place, whatever number of ranks saved them."""
    state = TrainState(**read_json(path / "state.json"))
    _check_shards(path)
    _make_moments(optimizers)
    wanted = tensors(model, optimizers)
    _read_tensors(path, wanted, alone=world.size == 1)
    check_finite(wanted, path, f"resume from an older checkpoint: write its step into {LATEST}")
    return state


def micro_batches_per_step(config: RunConfig, world: World) -> int:
    return world.size * config.training.draft_accumulation_steps


def read_json(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"{file.parent.resolve()} holds no {file.name}; give a checkpoint folder iter_NNNNNNN made by torchspec train")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file.resolve()} is damaged ({error}); use an older checkpoint: write its step into {LATEST}") from error


def _check_shards(path: Path) -> None:
    shards = sorted(path.glob("shard-*.safetensors"))
    if not shards:
        raise UserError(f"{path.resolve()} holds no weights (no shard-*.safetensors); give a checkpoint folder iter_NNNNNNN")
    for shard in shards:
        try:
            safe_open(shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{shard} is not a readable safetensors file ({error}); resume from an older checkpoint") from error


def _read_tensors(path: Path, wanted: dict[str, Tensor], alone: bool) -> None:
    try:
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
    except CheckpointException as error:
        raise UserError(
            f"{path} lacks tensors, a shard-*.safetensors may be missing ({error.failures}); use an older checkpoint"
        ) from error


def _make_moments(optimizers: list[torch.optim.Optimizer]) -> None:
    """Optimizers make their moments in the first step: one of rate zero makes them, to be filled by the load that follows."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
