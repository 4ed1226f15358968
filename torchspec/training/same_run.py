"""What a run must have in common with a checkpoint to go on from it as if it had never been killed: config, contents, draft."""

from pathlib import Path

from pydantic import ValidationError
from transformers import AutoConfig, PreTrainedConfig

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.training.checkpoint import micro_batches_per_step, read_json
from torchspec.training.distributed import World

CONTENTS = {  # facts of data.json -> their names for readers
    "fingerprint": "tokens and loss masks of the training data",
    "held_out": "tokens and loss masks of the held-out data",
    "target_contents": "files of the target",
}
WRITTEN_BY_TRANSFORMERS = {"transformers_version", "_name_or_path", "dtype", "architectures"}


def check_same_run(path: Path, config: RunConfig, world: World, facts: dict, draft: PreTrainedConfig) -> None:
    """facts: of the run's data and target; draft: what the run trains."""
    _check_config(path, config)
    _check_batches(path, config, world)
    _check_contents(path, facts)
    _check_same_draft(path, draft)


def differences(found: PreTrainedConfig, wanted: PreTrainedConfig, free: set[str]) -> dict[str, str]:
    """Settings of this run's draft that are another draft's in another way -> both values. free: those that may differ."""
    found, wanted = (_flat(config.to_dict()) for config in (found, wanted))
    different = [key for key in wanted if key.rpartition(".")[2] not in free and found.get(key) != wanted[key]]
    return {key: f"{found.get(key)!r} there, {wanted[key]!r} in this run" for key in different}


def _check_same_draft(path: Path, wanted: PreTrainedConfig) -> None:
    """Equal shapes do not make equal drafts: fc reads other columns with other layer ids, and the mask token is learned."""
    different = differences(AutoConfig.from_pretrained(path), wanted, WRITTEN_BY_TRANSFORMERS)
    if different:
        what = "; ".join(f"{key}: {values}" for key, values in list(different.items())[:4])
        raise UserError(f"{path} holds another draft ({what}); make the draft section agree with it")


def _check_config(path: Path, config: RunConfig) -> None:
    try:
        saved = RunConfig.model_validate(read_json(path / "run.json"), strict=False).resumable_fields()
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"{path} was made by another version of torchspec, whose {field} this one does not read; set another output_dir"
        ) from error
    wanted = config.resumable_fields()
    changed = [
        f"{s}.{key}: {saved[s].get(key)!r} -> {wanted[s].get(key)!r}"
        for s in saved
        for key in saved[s] | wanted[s]
        if saved[s].get(key) != wanted[s].get(key)
    ]
    if changed:
        length = all(change.startswith(("training.max_steps:", "training.num_epochs:")) for change in changed)
        raise UserError(
            f"{path} was made by a different run ({'; '.join(changed)}); set another output_dir"
            + (f" with training.load_path={path} training.continual_training=true to go on with its weights," if length else "")
            + " or restore these values"
        )


def _check_batches(path: Path, config: RunConfig, world: World) -> None:
    found, per_step = read_json(path / "state.json")["micro_batches_per_step"], micro_batches_per_step(config, world)
    if found != per_step:
        raise UserError(
            f"{path} was made with {found} micro-batches per step, but {world.size} ranks x "
            f"training.draft_accumulation_steps={config.training.draft_accumulation_steps} are {per_step}; change the accumulation to match"
        )


def _check_contents(path: Path, facts: dict) -> None:
    saved = read_json(path / "data.json")
    changed = [f"{name}: {saved.get(fact)!r} -> {facts[fact]!r}" for fact, name in CONTENTS.items() if saved.get(fact) != facts[fact]]
    if changed:
        raise UserError(f"{path} was made from other contents ({'; '.join(changed)}); restore them, or set another output_dir")


def _flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples as lists, since JSON knows only these."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
