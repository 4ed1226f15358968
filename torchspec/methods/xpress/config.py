"""The `draft` section of a run with `method: xpress`."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from torchspec.methods.block.config import BlockConfig


class XPressConfig(BlockConfig):
    untaught: ClassVar[dict] = {"method": "xpress", "loss": {"ce": 1.0}}

    method: Literal["xpress"]
    loss: dict[Literal["ce", "kl", "tv", "lk"], PositiveFloat] = Field(
        {"ce": 0.1, "tv": 0.9}, min_length=1, description="of each of the three laws below: weights as in docs/dflash.md"
    )
    xpress_rank: PositiveInt = Field(256, description="width r of the head's states")
    xpress_mlp_hidden: PositiveInt = Field(512, description="width of its MLP")
    xpress_num_passes: PositiveInt = Field(6, description="passes over a block until its proposals stand")
    xpress_topc: NonNegativeInt = Field(0, description="tokens of a slot that are refined, the backbone's best; 0: all")
    consistency_loss: NonNegativeFloat = Field(0.3, description="weight of the loss of rounds that read the draft's own tokens")
    consistency_rounds: PositiveInt = Field(1, description="such rounds; each costs as much as the loss on the text's tokens")
    base_loss: NonNegativeFloat = Field(0.6, description="weight of the loss of the backbone alone, which the first pass begins with")
