"""Where a run begins: at its own latest checkpoint, else where training.load_path says, else at zero."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from torchspec import checkpoint
from torchspec.build import Run
from torchspec.checkpoint import TrainState
from torchspec.distributed import load_whole
from torchspec.errors import UserError

EXPORTED = "model.safetensors"
# keys of a draft's config.json that its computation does not depend on; drafts may differ in them and share weights
FREE = {
    "architectures", "block_size", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "max_window_layers",
    "initializer_range", "attention_dropout", "use_cache", "tie_word_embeddings", "transformers_version", "_name_or_path",
    "draft_vocab_coverage",
}  # fmt: skip


def begin(run: Run) -> TrainState:
    """Fills the draft and the optimizers; every rank calls it."""
    config, own = run.config, checkpoint.latest(run.config.checkpoints)
    if own is not None:
        state = checkpoint.load(own, run.model, run.optimizers, config, run.world)
        run.say(f"resuming from {own} at step {state.step} of {run.total_steps}")
        return state
    fresh = TrainState(micro_batches_per_step=checkpoint.micro_batches_per_step(config, run.world))
    if config.training.load_path is None:
        return fresh
    source = find(config.training.load_path)
    if config.training.continual_training:
        _check_same_draft(run, source)
        load_whole(run.model, _fitting(run, source, _read(source)))
        run.say(f"starting with the weights of {source}")
        return fresh
    if (source / EXPORTED).is_file():
        raise UserError(
            f"training.load_path={config.training.load_path!r} is an exported draft, which holds no optimizer to go on with; "
            "set training.continual_training=true to start with its weights"
        )
    state = checkpoint.load(source, run.model, run.optimizers, config, run.world)
    state.best_step, state.best_tau = 0, 0.0  # that checkpoint lies in the other run's folder
    run.say(f"going on from {source} at step {state.step} of {run.total_steps}")
    return state


def find(load_path: str) -> Path:
    """The checkpoint folder, the latest of a checkpoints folder, or the exported draft."""
    path = Path(load_path)
    if (path / "state.json").is_file() or (path / EXPORTED).is_file():
        return path
    newest = checkpoint.latest(path)
    if newest is None:
        raise UserError(
            f"training.load_path={load_path!r}: {path.resolve()} is no checkpoint (no state.json), no checkpoints folder "
            f"(no {checkpoint.LATEST}) and no exported draft (no {EXPORTED})"
        )
    return newest


def _read(source: Path) -> dict[str, Tensor]:
    if not (source / EXPORTED).is_file():
        return checkpoint.read_weights(source)
    try:
        return load_file(source / EXPORTED)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{source / EXPORTED} is not a readable safetensors file ({error}); export the draft again") from error


def _check_same_draft(run: Run, source: Path) -> None:
    """Equal shapes do not make equal drafts: fc reads other columns with other layer ids, and the mask token is learned."""
    found, wanted = (_flat(config.to_dict()) for config in (AutoConfig.from_pretrained(source), run.method.config))
    different = [key for key in wanted if key.rpartition(".")[2] not in FREE and found.get(key) != wanted[key]]
    if different:
        what = "; ".join(f"{key}: {found.get(key)!r} there, {wanted[key]!r} in this run" for key in different[:4])
        raise UserError(f"training.load_path={str(source)!r} holds another draft ({what}); make the draft section agree with it")


def _flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples as lists, since JSON knows only these."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _fitting(run: Run, source: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is trained. A pruned vocabulary with its rows of the target's head is not: the run's own data choose it."""
    frozen = {name for name, _ in run.model.named_buffers()}
    weights = {name: value for name, value in weights.items() if name not in frozen}
    expected = {name: parameter.shape for name, parameter in run.model.named_parameters()}
    wrong = [name for name in expected.keys() | weights.keys() if name not in weights or weights[name].shape != expected.get(name)]
    if wrong:
        raise UserError(f"training.load_path={str(source)!r}: {', '.join(sorted(wrong)[:4])} do not fit the draft of this run")
    return weights
