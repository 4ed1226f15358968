"""Where a run begins: at its own latest checkpoint, else where training.load_path says, else at zero."""

import json
from pathlib import Path

from torchspec.errors import UserError
from torchspec.target.fetch import resolve_draft
from torchspec.training import checkpoint, checkpoints
from torchspec.training.build import Run
from torchspec.training.checkpoint import TrainState
from torchspec.training.distributed import load_whole
from torchspec.training.same_run import check_same_run
from torchspec.training.warm import fit, read_source

START = "start.json"  # what was taken from load_path, and what was not


def begin(run: Run) -> TrainState:
    """Fills the draft and the optimizers; every rank calls it."""
    config, own = run.config, checkpoints.latest(run.config.checkpoints)
    if own is not None:
        state = _resume(run, own)
        finished = state.step == run.total_steps
        run.say(f"{'this run is finished:' if finished else 'resuming from'} {own} at step {state.step} of {run.total_steps}")
        return state
    if config.training.load_path is None or config.training.continual_training:
        _record(run, None if config.training.load_path is None else _take_weights(run, config.training.load_path))
        return TrainState(micro_batches_per_step=checkpoint.micro_batches_per_step(config, run.world))
    source = _checkpoint(config.training.load_path)
    if source is None:
        raise UserError(
            f"training.load_path={config.training.load_path!r} is no checkpoint (no state.json) and no checkpoints folder (no "
            f"{checkpoints.LATEST}), so it holds no optimizer to go on with; to start with a draft's weights alone set "
            "training.continual_training=true"
        )
    state = _resume(run, source)
    state.best_step, state.best_tau, state.since_best = 0, 0.0, 0  # that checkpoint lies in the other run's folder
    run.say(f"going on from {source} at step {state.step} of {run.total_steps}")
    return state


def _resume(run: Run, source: Path) -> TrainState:
    check_same_run(source, run.config, run.world, run.data_facts, run.method.config)
    return checkpoint.load(source, run.model, run.optimizers, run.world)


def _checkpoint(load_path: str) -> Path | None:
    """The checkpoint folder itself, or the latest of a checkpoints folder."""
    path = Path(load_path)
    return path if (path / "state.json").is_file() else checkpoints.latest(path)


def _take_weights(run: Run, load_path: str) -> dict:
    """Fills what fits; the rest of the draft stays as it was built, alike on every rank. -> the account of it."""
    source = _checkpoint(load_path) or _draft(load_path)
    try:
        draft = read_source(source, run.method.target)
        fitting = fit(draft, run.method, run.model)
    except UserError as error:
        raise UserError(f"training.load_path={load_path!r}: {error}") from error
    load_whole(run.model, fitting.taken)
    run.say(f"starting with the weights of {source}: {len(fitting.taken)} tensors, {fitting.share:.0%} of the draft's parameters")
    for line in fitting.lines():
        run.say(f"  {line}")
    return {"load_path": load_path, "source": str(source), "method": draft.method, **fitting.to_json()}


def _draft(load_path: str) -> Path:
    try:
        return resolve_draft(load_path)
    except UserError as error:
        raise UserError(
            f"training.load_path={load_path!r} is no checkpoint (no state.json), no checkpoints folder (no {checkpoints.LATEST}) "
            f"and no draft: {error}"
        ) from error


def _record(run: Run, account: dict | None) -> None:
    """account: none for a run that begins at zero, whose folder may hold that of an earlier one."""
    file = Path(run.config.output_dir) / START
    if not run.world.is_main:
        return
    if account is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(account, indent=2) + "\n")
