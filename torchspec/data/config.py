"""What a draft learns from, and what it is measured on."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchspec.section import Section

MAX_LENGTH, MIN_LOSS_TOKENS = 4096, 2  # of `torchspec prepare` as well: a run that says nothing takes a folder for which nothing was said


class DatasetConfig(Section):
    train_data_path: str = Field(description="chat JSONL, a folder made by `torchspec prepare`, or a hub dataset id")
    eval_data_path: str | None = Field(None, description="held-out conversations that the target wrote; tau is measured on them")
    eval_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="in place of eval_data_path: this share of the training prompts is held out, by the hash of what they say"
    )
    mix: dict[str, PositiveFloat] = Field(
        {}, description="further sources to train on: path -> passes over it per epoch (0.5: half of it, the other half in the next)"
    )
    shuffle_dataset: bool = Field(True, description="another order of the samples in every epoch; false keeps the order of the files")
    min_loss_tokens: PositiveInt = Field(MIN_LOSS_TOKENS, description="samples with fewer supervised tokens are left out")
    max_length: PositiveInt = Field(MAX_LENGTH, description="samples are cut to this many tokens")
    thinking: bool | None = Field(None, description="the template's thinking mode; none leaves it to the template")
    last_turn_only: bool = Field(False, description="supervise only the last assistant turn")

    @model_validator(mode="after")
    def _held_out_once(self):
        if self.eval_share is not None and self.eval_data_path is not None:
            raise ValueError(f"eval_share={self.eval_share:g} and eval_data_path={self.eval_data_path!r} both hold text out; leave one out")
        return self

    @property
    def holds_out(self) -> bool:
        return self.eval_data_path is not None or self.eval_share is not None
