"""The `draft` section of a run with `method: domino`."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from torchspec.methods.block.config import BlockConfig


class DominoConfig(BlockConfig):
    untaught: ClassVar[dict] = {"method": "domino", "loss": {"ce": 1.0}}

    method: Literal["domino"]
    emb_dim: PositiveInt = Field(256, description="rank E of what is added to the logits")
    gru_hidden_dim: PositiveInt = Field(1024, description="size G of the state that reads the block's tokens")
    pure_draft_prefix_len: int = Field(1, ge=0, description="first proposals that nothing is added to; SGLang serves 1 alone")
    shift_label: bool = Field(
        True, description="row k of a block proposes the token after its own place, as published; false: DFlash's rows"
    )
    base_loss_decay_ratio: float = Field(
        0.5, ge=0, le=1, description="share of the training in which the weight of the loss without the head falls from 1 to 0"
    )

    @model_validator(mode="after")
    def _prefix(self):
        if self.pure_draft_prefix_len >= self.block_size - 1:
            raise ValueError(
                f"pure_draft_prefix_len={self.pure_draft_prefix_len} leaves the head none of the {self.block_size - 1} proposals of a "
                f"block; set it below {self.block_size - 1}"
            )
        return self
