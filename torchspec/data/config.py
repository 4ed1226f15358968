"""What a draft learns from, and what it is measured on."""

from pydantic import Field, PositiveFloat, PositiveInt

from torchspec.section import Section

MAX_LENGTH, MIN_LOSS_TOKENS = 4096, 2  # of `torchspec prepare` as well: a run that says nothing takes a folder for which nothing was said


class DatasetConfig(Section):
    train_data_path: str = Field(description="chat JSONL, a folder made by `torchspec prepare`, or a hub dataset id")
    eval_data_path: str | None = Field(None, description="held-out conversations that the target wrote; tau is measured on them")
    mix: dict[str, PositiveFloat] = Field(
        {}, description="further sources to train on: path -> passes over it per epoch (0.5: half of it, the other half in the next)"
    )
    shuffle_dataset: bool = Field(True, description="another order of the samples in every epoch; false keeps the order of the files")
    min_loss_tokens: PositiveInt = Field(MIN_LOSS_TOKENS, description="samples with fewer supervised tokens are left out")
    max_length: PositiveInt = Field(MAX_LENGTH, description="samples are cut to this many tokens")
    thinking: bool | None = Field(None, description="the template's thinking mode; none leaves it to the template")
    last_turn_only: bool = Field(False, description="supervise only the last assistant turn")
