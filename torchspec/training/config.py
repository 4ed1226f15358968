"""How the draft is trained, what is measured meanwhile, and what is told."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from torchspec.capture.registry import engine_name
from torchspec.section import Section, Share


class TrainingConfig(Section):
    num_ranks: PositiveInt = Field(1, description="trainer ranks, each with its own device")
    micro_batch_size: PositiveInt = Field(1, description="documents packed into one micro-batch")
    max_batch_tokens: PositiveInt = Field(16384, description="most tokens packed into one micro-batch")
    draft_accumulation_steps: PositiveInt = Field(1, description="micro-batches per optimizer step")
    num_epochs: PositiveInt = Field(1, description="passes over the training data")
    max_steps: PositiveInt | None = Field(None, description="stop after this many optimizer steps")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: matrices by Muon, the rest by AdamW")
    muon_rows: PositiveInt | None = Field(
        None,
        description="muon: blocks of so many rows of a matrix are made orthogonal, each by itself, which costs less; none: it as a whole",
    )
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
        None,
        description="what to begin with: a checkpoint, a checkpoints folder, or any draft as folder or hub id (docs/warm_start.md); "
        "read only where output_dir holds no checkpoint",
    )
    continual_training: bool = Field(
        False,
        description="take load_path's weights alone, as far as they fit: schedule, optimizer and data start at zero; "
        "false goes on with that run",
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
    def _optimizer(self):
        if self.muon_rows is not None and self.optimizer != "muon":
            raise ValueError(f"muon_rows={self.muon_rows} is read by optimizer=muon alone; leave it out, or set optimizer=muon")
        return self

    @model_validator(mode="after")
    def _beginning(self):
        if self.continual_training and self.load_path is None:
            raise ValueError("continual_training=true needs load_path: a checkpoint folder or a draft to take the weights from")
        return self


class EvaluationConfig(Section):
    interval: PositiveInt = Field(100, description="steps between evaluations on the held-out text")
    max_samples: PositiveInt = Field(64, description="held-out samples per evaluation during training")
    patience: PositiveInt | None = Field(
        None, description="stop after so many evaluations in a row that did not raise held-out tau; none: train to the last step"
    )
    served: Annotated[Literal["vllm", "sglang"], BeforeValidator(engine_name)] | None = Field(
        None, description="engine that every checkpoint is also served in, for the same tau"
    )
    served_samples: PositiveInt = Field(16, description="held-out prompts sent to that server")
    served_max_new_tokens: PositiveInt = Field(128, description="most tokens of one of its answers")
    served_python: str | None = Field(None, description="Python of the environment that holds the engine; none: the run's own")
    served_args: str = Field("", description="further arguments of the server, such as its share of the device's memory")


class TrackingConfig(Section):
    log_interval: PositiveInt = Field(10, description="steps between lines of metrics.jsonl")
    tensorboard: bool = Field(False, description="the same numbers in output_dir/tensorboard")
    wandb_project: str | None = Field(None, description="the same in a project of Weights & Biases")
    mlflow_experiment: str | None = Field(None, description="the same in an experiment of MLflow, where MLFLOW_TRACKING_URI points")
    trackio_project: str | None = Field(None, description="the same in a project of Trackio, in its own folder or TRACKIO_DIR")
    swanlab_project: str | None = Field(None, description="the same in a project of SwanLab; SWANLAB_MODE=offline keeps it here")
    profile_steps: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="first and last step of a window in PyTorch's profiler; the main rank's trace goes to output_dir/profile"
    )

    @model_validator(mode="after")
    def _window(self):
        if self.profile_steps is not None and self.profile_steps[0] >= self.profile_steps[1]:
            raise ValueError(f"profile_steps={list(self.profile_steps)} must ascend: the first step of the window, then a later last one")
        return self
