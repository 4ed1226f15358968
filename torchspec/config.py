"""The root config of a run: strict, frozen, readable without torch. A default is written here or in its method's section, nowhere else."""

import json
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from torchspec.errors import UserError
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.registry import METHODS

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelConfig(Section):
    target_model_path: str = Field(description="folder of the target, or a hub id")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of the target, and of the draft's computation")
    device: str = Field("auto", description="auto takes CUDA when there is one")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the target")


class DatasetConfig(Section):
    train_data_path: str = Field(description="chat JSONL, a folder made by `torchspec prepare`, or a hub dataset id")
    eval_data_path: str | None = Field(None, description="held-out conversations that the target wrote; tau is measured on them")
    mix: dict[str, PositiveFloat] = Field(
        {}, description="further sources to train on: path -> passes over it per epoch (0.5: half of it, the other half in the next)"
    )
    shuffle_dataset: bool = Field(True, description="another order of the samples in every epoch; false keeps the order of the files")
    min_loss_tokens: PositiveInt = Field(2, description="samples with fewer supervised tokens are left out")
    max_length: PositiveInt = Field(4096, description="samples are cut to this many tokens")
    thinking: bool | None = Field(None, description="the template's thinking mode; none leaves it to the template")
    last_turn_only: bool = Field(False, description="supervise only the last assistant turn")


class TrainingConfig(Section):
    num_ranks: PositiveInt = Field(1, description="trainer ranks, each with its own device")
    micro_batch_size: PositiveInt = Field(1, description="documents packed into one micro-batch")
    max_batch_tokens: PositiveInt = Field(16384, description="most tokens packed into one micro-batch")
    draft_accumulation_steps: PositiveInt = Field(1, description="micro-batches per optimizer step")
    num_epochs: PositiveInt = Field(1, description="passes over the training data")
    max_steps: PositiveInt | None = Field(None, description="stop after this many optimizer steps")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: matrices by Muon, the rest by AdamW")
    learning_rate: PositiveFloat = Field(6e-4, description="after the warm-up")
    min_lr: NonNegativeFloat = Field(6e-5, description="learning rate at the end of the decay")
    lr_decay_style: Literal["WSD", "cosine", "constant"] = Field("cosine", description="WSD: warm-up, stable, decay")
    wsd_decay_ratio: Share = Field(0.2, description="last share of the steps in which WSD decays")
    wsd_decay_style: Literal["linear", "cosine"] = Field("linear", description="shape of the WSD decay")
    warmup_ratio: Share = Field(0.04, description="first share of the steps, in which the learning rate rises linearly")
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled, of the matrices")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="memory of the second moment")
    max_grad_norm: PositiveFloat = Field(1.0, description="the gradient is scaled down to this norm")
    seed: NonNegativeInt = Field(0, description="of the draft's first weights, the order of the data and the drawn anchors")
    fsdp_strategy: Literal["FULL_SHARD", "HYBRID", "REPLICATE"] = Field("FULL_SHARD", description="where several ranks keep the draft")
    compile: bool | None = Field(None, description="torch.compile each draft layer; none: on GPUs, where it saves a tenth of a step")
    activation_checkpointing: bool = Field(False, description="compute a draft layer's activations again in the backward pass")
    prefetch_depth: PositiveInt = Field(4, description="samples captured ahead of the trainer")
    save_interval: PositiveInt = Field(500, description="steps between checkpoints")
    save_per_epoch: bool = Field(False, description="a checkpoint at the end of every epoch as well")
    load_path: str | None = Field(
        None, description="checkpoint, checkpoints folder or exported draft to begin with; read only where output_dir holds no checkpoint"
    )
    continual_training: bool = Field(
        False, description="take load_path's weights alone: schedule, optimizer and data start at zero; false goes on with that run"
    )
    max_checkpoints: PositiveInt = Field(3, description="newest checkpoints that are kept; the best by tau is kept as well")

    @model_validator(mode="after")
    def _schedule(self):
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr={self.min_lr} is above learning_rate={self.learning_rate}; lower it")
        decay = self.wsd_decay_ratio if self.lr_decay_style == "WSD" else 0
        if self.warmup_ratio + decay > 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio} and wsd_decay_ratio={decay} add up to more than 1; lower one")
        return self

    @model_validator(mode="after")
    def _beginning(self):
        if self.continual_training and self.load_path is None:
            raise ValueError("continual_training=true needs load_path: a checkpoint folder or an exported draft to take the weights from")
        return self


class MooncakeConfig(Section):
    master: str | None = Field(None, description="host:port of a running mooncake_master; none starts one for the run")
    protocol: Literal["tcp", "rdma"] = "tcp"
    rdma_device: str = Field("", description="comma-separated; empty lets Mooncake choose")
    segment_gib: PositiveFloat = Field(4.0, strict=False, description="memory of each worker and of each rank for features under way")


class InferenceConfig(Section):
    inference_engine_type: str = Field("hf", description="who runs the target")
    num_workers: NonNegativeInt = Field(0, description="capture workers, each with its own devices; 0 captures in the trainer's process")
    gpus_per_worker: PositiveInt = Field(1, description="GPUs of one capture worker: its tensor parallel size")
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of a device's memory that vLLM or SGLang takes; none: 0.9 of a worker's own GPU, else 0.4"
    )
    server_url: str | None = Field(None, description="running SGLang server on the node of each worker; none starts an engine per worker")
    transfer_dtype: Literal["model", "fp8"] = Field("model", description="fp8: e4m3 with a scale per token and layer, half the bytes")
    transfer: Literal["ray", "mooncake"] = Field("ray", description="how features get from workers to ranks")
    mooncake: MooncakeConfig = MooncakeConfig()
    replay_dir: str | None = Field(
        None, description="folder that keeps features on disk for later runs on the same text; refused where they are another target's"
    )
    replay_gib: PositiveFloat = Field(100.0, strict=False, description="disk for replay_dir; what does not fit is captured each time")
    max_tries: PositiveInt = Field(3, description="failures after which a sample is dropped")
    max_dropped: Share = Field(0.01, strict=False, description="share of a rank's samples above which the run stops")
    cache_gib: NonNegativeFloat = Field(
        0.0, strict=False, description="the host's memory for features of earlier epochs; 0 captures every epoch anew"
    )

    @model_validator(mode="after")
    def _where(self):
        if self.num_workers == 0 and self.transfer_dtype != "model" and self.replay_dir is None:
            raise ValueError("transfer_dtype concerns capture workers and replay_dir; set num_workers or replay_dir, or leave it out")
        if self.num_workers == 0 and self.transfer != "ray":
            raise ValueError(f"transfer={self.transfer} concerns capture workers; set num_workers, or leave it out")
        if self.num_workers and self.cache_gib:
            raise ValueError(f"cache_gib={self.cache_gib:g} keeps features in the trainer's process; leave it out where num_workers is set")
        if self.memory_fraction is not None and (self.inference_engine_type == "hf" or self.server_url is not None):
            where = "inference_engine_type: hf" if self.inference_engine_type == "hf" else f"server_url={self.server_url!r}"
            raise ValueError(f"memory_fraction={self.memory_fraction:g} is for an engine that the run starts; leave it out with {where}")
        if self.server_url is not None and self.inference_engine_type != "sgl":
            raise ValueError(
                f"server_url={self.server_url!r} is for inference_engine_type: sgl; leave it out for {self.inference_engine_type}"
            )
        return self


class EvaluationConfig(Section):
    interval: PositiveInt = Field(100, description="steps between evaluations on the held-out text")
    max_samples: PositiveInt = Field(64, description="held-out samples per evaluation during training")
    served: Literal["vllm", "sglang"] | None = Field(None, description="engine that every checkpoint is also served in, for the same tau")
    served_samples: PositiveInt = Field(16, description="held-out prompts sent to that server")
    served_max_new_tokens: PositiveInt = Field(128, description="most tokens of one of its answers")
    served_python: str | None = Field(None, description="Python of the environment that holds the engine; none: the run's own")
    served_args: str = Field("", description="further arguments of the server, such as its share of the device's memory")


class ClusterConfig(Section):
    address: str | None = Field(None, description="Ray cluster to join, host:port or auto; none starts one on this machine")
    max_restarts: NonNegativeInt = Field(3, description="times that dead trainer ranks are started again from the latest checkpoint")


class TrackingConfig(Section):
    log_interval: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    tensorboard: bool = False
    wandb_project: str | None = None


FREE_TO_CHANGE = {  # in a run that is resumed; all other fields of these sections determine the weights, or which of them are the best
    "model": {"target_model_path", "trust_remote_code"},  # paths may change, the contents under them may not (torchspec/same_run.py)
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
    "evaluation": {"interval", "served", "served_samples", "served_max_new_tokens", "served_python", "served_args"},
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
        if self.evaluation.served and self.dataset.eval_data_path is None:
            raise ValueError(f"evaluation.served={self.evaluation.served} needs held-out prompts; set dataset.eval_data_path")
        return self

    @property
    def distributed(self) -> bool:
        return self.training.num_ranks > 1 or self.inference.num_workers > 0

    def resumable_fields(self) -> dict:
        """What determines the weights step by step; a run may only be resumed with the same values."""
        everything = json.loads(self.model_dump_json())
        return {section: {f: v for f, v in everything[section].items() if f not in free} for section, free in FREE_TO_CHANGE.items()}


def load_config(file: str, overrides: list[str]) -> RunConfig:
    """YAML plus `section.key=value` overrides -> RunConfig; every problem is one sentence that names the field."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(file)
    if not path.is_file():
        raise UserError(f"config {file!r}: no such file (looked for {path.resolve()})")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} is not of the form section.key=value")
    try:
        loaded = OmegaConf.load(path)
        if not OmegaConf.is_dict(loaded):
            raise UserError(f"config {file!r} holds no section: it must be a YAML mapping like those in configs/")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(overrides))
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config {file!r} cannot be read: {str(error).splitlines()[0]}") from error
    try:
        return RunConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(f"config {file!r}: " + "; ".join(map(_sentence, error.errors()))) from error


def _sentence(problem: dict) -> str:
    field = ".".join(str(part) for part in problem["loc"] if part not in METHODS)
    if problem["type"] == "union_tag_invalid":
        return f"{field}.method={problem['ctx']['tag']!r} is refused: choose one of {', '.join(METHODS)}"
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a known key, remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{field} is missing, set it in the file or as {field}=VALUE"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {reason}" if problem["type"] == "value_error" else f"{field}={problem['input']!r} is refused: {reason}"
