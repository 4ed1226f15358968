"""One checkpoint: complete or absent, written beside the training, resumed exactly, by any number of ranks.

iter_0000400/
  shard-*.safetensors          one file per rank: float32 masters `model/NAME` and moments `optimizer/NAME/MOMENT`
  config.json (the draft) · run.json · data.json · state.json

Tensors go through PyTorch's distributed checkpoint (DCP) in its safetensors form, so a checkpoint holds nothing executable.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.files.finite import is_finite
from torchspec.training.checkpoints import LATEST, folder, point_to, rotate
from torchspec.training.distributed import World
from torchspec.training.tensors import fill, tensors


@dataclass
class TrainState:
    """Everything but the tensors. The stream's position and the learning rate follow from `step`."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # tokens trained on, all epochs and ranks
    seconds: float = 0.0  # wall-clock of training, over all resumptions
    best_tau: float = 0.0
    best_step: int = 0
    since_best: int = 0  # evaluations after the one that raised best_tau
    right: float = 0.0  # sum of block_tau over the blocks trained on since the last evaluation, all ranks
    blocks: float = 0.0  # their number
    micro_batches_per_step: int = 1  # over all ranks; the position in the data follows from it and `step`


class Saver:
    """Saves while training goes on: tensors are copied at once and written by a thread, `finish` makes the result visible."""

    def __init__(self, root: Path, config: RunConfig, world: World, draft_config, data_facts: dict):
        self.root, self.config, self.world = root, config, world
        self.draft_config, self.data_facts = draft_config, data_facts
        # the thread's collectives must not meet the loop's
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        self.writing: Future | None = None
        for left in root.glob(".partial_*") if world.is_main else ():  # of a run that was killed while it wrote
            shutil.rmtree(left)
        self.state: TrainState | None = None

    def save(self, state: TrainState, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Every rank calls it. A kill at any moment leaves the old checkpoint or the new one, never half of one."""
        self.finish()
        self.state, saved = TrainState(**asdict(state)), tensors(model, optimizers)
        self._check_finite(saved)
        partial = self._partial(state.step)
        if self.world.is_main:
            with none_left(partial):
                self._describe(partial)
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

    def _describe(self, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.draft_config.save_pretrained(partial)
        (partial / "run.json").write_text(self.config.model_dump_json(indent=2))
        (partial / "data.json").write_text(json.dumps(self.data_facts, indent=2))
        (partial / "state.json").write_text(json.dumps(asdict(self.state), indent=2))

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
        point_to(self.root, self.state.step, self.state.best_step, self.state.best_tau)
        rotate(self.root, self.config.training.max_checkpoints, self.state.best_step, self.state.step)

    def _partial(self, step: int) -> Path:
        return self.root / f".partial_{step}"


def _written(writing: Future, partial: Path) -> None:
    """Waits for a checkpoint's files."""
    try:
        with none_left(partial):
            writing.result()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
        if not causes:
            raise
        raise OSError(causes[0].errno, causes[0].strerror, str(partial)) from error


@contextmanager
def none_left(partial: Path) -> Iterator[None]:
    """Half of a checkpoint's files are no use to anybody, and the disk may need the room."""
    try:
        yield
    except (OSError, CheckpointException):
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], world: World) -> TrainState:
    """Restores weights and moments in place, whatever number of ranks saved them."""
    state = TrainState(**read_json(path / "state.json"))
    fill(path, model, optimizers, alone=world.size == 1)
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
