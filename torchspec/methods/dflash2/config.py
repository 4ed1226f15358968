"""The `draft` section of a run with `method: dflash2`."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from torchspec.methods.block.config import BlockConfig


class DFlash2Config(BlockConfig):
    method: Literal["dflash2"]
    loss: dict[Literal["ce", "kl", "tv", "lk"], PositiveFloat] = Field(
        {"ce": 0.1}, min_length=1, description="of the logits that the candidates are the largest of: weights as in docs/dflash.md"
    )
    selector_loss: dict[Literal["ce", "tv"], PositiveFloat] = Field(
        {"ce": 0.1, "tv": 0.9},
        min_length=1,
        description="of the choice among the candidates, added to `loss`: weights of ce, of the text's tokens, and tv, from the target's law",
    )
    conv_kernel_size: PositiveInt = Field(2, description="slots T that a convolution reads: a slot and the T-1 before it in its block")
    conv_group_size: PositiveInt = Field(16, description="channels that share a slot's own part of the kernel; must divide the width")
    selector_rank: PositiveInt = Field(256, description="width r of the tables of tokens before and after")
    selector_top_k: int = Field(16, ge=2, description="candidates K of a slot; llama.cpp serves K(K+1) up to the draft's width")

    untaught: ClassVar[dict] = {"method": "dflash2", "loss": {"ce": 1.0}, "selector_loss": {"ce": 1.0}}

    @property
    def taught(self) -> bool:
        return self.compares or "tv" in self.selector_loss

    @model_validator(mode="after")
    def _taps(self):
        if self.conv_kernel_size > self.block_size:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size} reads past a block of {self.block_size} slots; set at most that")
        return self
