"""The root config of a run: the list of its sections, strict, frozen, readable without torch. A default is written once, in its section."""

import json
import re
from pathlib import Path
from typing import Annotated, Union

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from torchspec.capture.config import InferenceConfig
from torchspec.data.config import DatasetConfig
from torchspec.errors import UserError
from torchspec.hints import did_you_mean, line_of
from torchspec.launch.config import ClusterConfig
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.registry import METHODS
from torchspec.section import Section
from torchspec.target.config import ModelConfig
from torchspec.training.config import EvaluationConfig, TrackingConfig, TrainingConfig

FREE_TO_CHANGE = {  # in a run that is resumed; all other fields of these sections determine the weights, or which of them are the best
    "model": {"target_model_path", "trust_remote_code"},  # paths may change, the contents under them may not (same_run.py)
    "draft": set(),
    "dataset": {"train_data_path", "eval_data_path", "mix"},
    "training": {
        "num_ranks", "draft_accumulation_steps",  # their product is compared when a checkpoint is loaded
        "fsdp_strategy", "compile", "activation_checkpointing", "prefetch_depth",
        "save_interval", "save_per_epoch", "max_checkpoints", "load_path", "continual_training",
    },
    "inference": {
        "num_workers", "gpus_per_worker", "memory_fraction", "server_url", "transfer", "mooncake", "replay_dir", "replay_gib",
        "max_tries", "max_dropped", "cache_gib",
    },
    "evaluation": {"interval", "patience", "served", "served_samples", "served_max_new_tokens", "served_python", "served_args"},
}  # fmt: skip


def _method_of(draft) -> str:
    """The method that a `draft` section is for: as YAML gives it, or as its own class."""
    default = DFlashConfig.model_fields["method"].default
    return draft.get("method", default) if isinstance(draft, dict) else draft.method if isinstance(draft, BaseModel) else default


DraftConfig = Annotated[Union[*(Annotated[entry.config, Tag(name)] for name, entry in METHODS.items())], Discriminator(_method_of)]


class RunConfig(Section):
    output_dir: str = Field(description="folder of everything that the run writes")
    model: ModelConfig
    draft: DraftConfig = DFlashConfig()
    dataset: DatasetConfig
    training: TrainingConfig = TrainingConfig()
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def checkpoints(self) -> Path:
        return Path(self.output_dir) / "checkpoints"

    @model_validator(mode="after")
    def _sources(self):
        if self.dataset.train_data_path in self.dataset.mix:
            raise ValueError(f"dataset.mix names dataset.train_data_path={self.dataset.train_data_path!r} again; name every source once")
        if self.evaluation.served == "sglang" and self.draft.method == "eagle3" and self.draft.norm_before_residual:
            raise ValueError("evaluation.served=sglang ignores draft.norm_before_residual; leave it out, or serve with vllm")
        for key in ("served", "patience"):
            value = getattr(self.evaluation, key)
            if value is not None and not self.dataset.holds_out:
                raise ValueError(f"evaluation.{key}={value} needs held-out prompts; set dataset.eval_data_path or eval_share")
        return self

    @property
    def distributed(self) -> bool:
        return self.training.num_ranks > 1 or self.inference.num_workers > 0

    def resumable_fields(self) -> dict:
        """What determines the weights step by step; a run may only be resumed with the same values."""
        everything = json.loads(self.model_dump_json())
        return {section: {f: v for f, v in everything[section].items() if f not in free} for section, free in FREE_TO_CHANGE.items()}


def load_config(file: str, overrides: list[str]) -> RunConfig:
    """YAML plus `section.key=value` overrides -> RunConfig; every problem is one sentence with the field, and its line in the file."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"config {file!r}: no such file (looked for {path.resolve()})")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} is not of the form section.key=value")
    values = _read(file, path, overrides)
    try:
        return RunConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        given = [override.partition("=")[0] for override in overrides]
        problems = [_sentence(problem, path.read_text(encoding="utf-8"), given) for problem in error.errors()]
        raise UserError(f"config {file!r}: " + "; ".join(problems)) from error


def _read(file: str, path: Path, overrides: list[str]) -> dict:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError, YAMLError

    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"config {file!r} holds no section: it must be a YAML mapping like those in configs/")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(overrides))
        return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except MarkedYAMLError as error:
        raise UserError(f"config {file!r} cannot be read: line {error.problem_mark.line + 1}: {error.problem}") from error
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {file!r} cannot be read: {str(error).splitlines()[0]}") from error


def _sentence(problem: dict, text: str, overridden: list[str]) -> str:
    """text: of the file; overridden: keys of the command line, whose values stand on no line."""
    kind, reason = problem["type"], problem["msg"].removeprefix("Value error, ")
    path = tuple(part for part in problem["loc"] if part not in METHODS) + (("method",) if kind == "union_tag_invalid" else ())
    field = ".".join(map(str, path))
    line = None if any(f"{field}.".startswith(f"{key}.") or key.startswith(f"{field}.") for key in overridden) else line_of(text, path)
    place = "" if line is None else f" (line {line})"
    if kind == "extra_forbidden":
        meant = _elsewhere(path[-1]) or did_you_mean(path[-1], _siblings(problem["loc"]))
        return f"{field}{place} is not a known key, {meant or 'remove it or correct its spelling'}"
    if kind == "missing":
        return f"{field}{place} is missing, set it in the file or as {field}=VALUE"
    if kind == "value_error":
        return f"{field}{place}: {reason}" if field else reason
    if kind == "union_tag_invalid":
        value, choices = problem["ctx"]["tag"], list(METHODS)
        reason = f"choose one of {', '.join(choices)}"
    else:
        value, choices = problem["input"], re.findall("'(.+?)'", reason) if kind == "literal_error" else []
    return f"{field}={value!r}{place} is refused: {reason}{did_you_mean(str(value), choices, ', ')}"


def _elsewhere(name: str) -> str:
    """The other sections, or methods, that have a key of this name."""
    sections = {part: field.annotation for part, field in RunConfig.model_fields.items() if part not in ("output_dir", "draft")}
    having = [part for part, section in sections.items() if name in section.model_fields]
    methods = [method for method, entry in METHODS.items() if name in entry.config.model_fields]
    having += [f"draft (method: {', '.join(methods)})"] if methods else []
    return f"it is one of {' and '.join(having)}" if having else ""


def _siblings(loc: tuple[str | int, ...]) -> dict:
    """Keys of the section in which this one stands."""
    section = RunConfig
    for part in loc[:-1]:
        section = METHODS[part].config if part in METHODS else section.model_fields[part].annotation
    return section.model_fields
