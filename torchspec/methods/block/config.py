"""What the `draft` section of every method with a block backbone holds."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchspec.methods.config import DraftShape


class BlockConfig(DraftShape):
    num_layers: PositiveInt = Field(5, description="draft decoder layers D")
    block_size: int = Field(16, ge=2, description="slots B of a block: the anchor and B-1 masks; serve with B-1 draft tokens")
    num_anchors: PositiveInt = Field(512, description="blocks per document and epoch, sampled without replacement")
    loss: dict[Literal["ce", "kl", "tv", "lk"], PositiveFloat] = Field(
        {"ce": 1.0},
        min_length=1,
        description="weights of: ce, of the text's tokens; kl, tv and lk, divergences from the target's law (docs/dflash.md)",
    )
    loss_decay_gamma: PositiveFloat | None = Field(
        None, description="slot k weighs exp(-(k-1)/gamma); none: what it adds to the expected acceptance (D-PACE)"
    )
    loss_negatives: PositiveInt | None = Field(
        None,
        description="softmax of the loss over the data's tokens and this many others, drawn anew each time; none: over all tokens",
    )
    target_layer_ids: tuple[int, ...] | None = Field(
        None, strict=False, description="captured layers as z-ids; default: spread over the target"
    )
    mask_token_id: int | None = Field(None, description="id that never occurs in text; default: chosen from the target's vocabulary")

    untaught: ClassVar[dict] = {"loss": {"ce": 1.0}}  # options of a draft that is not trained

    @property
    def compares(self) -> bool:
        """Whether `loss` asks for the target's law."""
        return self.loss.keys() != {"ce"}

    @property
    def taught(self) -> bool:
        """Whether training asks for the target's law, in whatever loss."""
        return self.compares

    @model_validator(mode="after")
    def _layers(self):
        if self.layer_types is not None and len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers, but num_layers={self.num_layers}; name each once")
        return self
