"""Where a run begins: at its own latest checkpoint, else where training.load_path says, else at zero."""

from pathlib import Path

from torch import Tensor

from torchspec.errors import UserError
from torchspec.importers.folder import read_tensors
from torchspec.training import checkpoint, checkpoints
from torchspec.training.build import Run
from torchspec.training.checkpoint import TrainState
from torchspec.training.distributed import load_whole
from torchspec.training.same_run import FREE, check_same_draft, check_same_run
from torchspec.training.tensors import read_weights

EXPORTED = "model.safetensors"


def begin(run: Run) -> TrainState:
    """Fills the draft and the optimizers; every rank calls it."""
    config, own = run.config, checkpoints.latest(run.config.checkpoints)
    if own is not None:
        state = _resume(run, own)
        run.say(f"resuming from {own} at step {state.step} of {run.total_steps}")
        return state
    fresh = TrainState(micro_batches_per_step=checkpoint.micro_batches_per_step(config, run.world))
    if config.training.load_path is None:
        return fresh
    source = find(config.training.load_path)
    if config.training.continual_training:
        check_same_draft(source, run.method.config, f"training.load_path={str(source)!r}", FREE)
        load_whole(run.model, _fitting(run, source, _read(source)))
        run.say(f"starting with the weights of {source}")
        return fresh
    if (source / EXPORTED).is_file():
        raise UserError(
            f"training.load_path={config.training.load_path!r} is an exported draft, which holds no optimizer to go on with; "
            "set training.continual_training=true to start with its weights"
        )
    state = _resume(run, source)
    state.best_step, state.best_tau = 0, 0.0  # that checkpoint lies in the other run's folder
    run.say(f"going on from {source} at step {state.step} of {run.total_steps}")
    return state


def _resume(run: Run, source: Path) -> TrainState:
    check_same_run(source, run.config, run.world, run.data_facts, run.method.config)
    return checkpoint.load(source, run.model, run.optimizers, run.world)


def find(load_path: str) -> Path:
    """The checkpoint folder, the latest of a checkpoints folder, or the exported draft."""
    path = Path(load_path)
    if (path / "state.json").is_file() or (path / EXPORTED).is_file():
        return path
    newest = checkpoints.latest(path)
    if newest is None:
        raise UserError(
            f"training.load_path={load_path!r}: {path.resolve()} is no checkpoint (no state.json), no checkpoints folder "
            f"(no {checkpoints.LATEST}) and no exported draft (no {EXPORTED})"
        )
    return newest


def _read(source: Path) -> dict[str, Tensor]:
    return read_tensors(source) if (source / EXPORTED).is_file() else read_weights(source)


def _fitting(run: Run, source: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is trained. A pruned vocabulary with its rows of the target's head is not: the run's own data choose it."""
    frozen = {name for name, _ in run.model.named_buffers()}
    weights = {name: value for name, value in weights.items() if name not in frozen}
    expected = {name: parameter.shape for name, parameter in run.model.named_parameters()}
    wrong = [name for name in expected.keys() | weights.keys() if name not in weights or weights[name].shape != expected.get(name)]
    if wrong:
        raise UserError(f"training.load_path={str(source)!r}: {', '.join(sorted(wrong)[:4])} do not fit the draft of this run")
    return weights
