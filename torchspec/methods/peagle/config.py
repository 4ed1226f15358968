"""The `draft` section of a run with `method: peagle`."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from torchspec.methods.eagle3.config import EagleShape


class PeagleConfig(EagleShape):
    method: Literal["peagle"] = "peagle"
    num_layers: PositiveInt = Field(4, description="draft decoder layers D: EAGLE-3's and D-1 ordinary ones")
    num_depths: int = Field(8, ge=2, description="tokens that a chain proposes at once; serve with as many draft tokens")
    down_sample_ratio: float = Field(
        0.7, gt=0, le=1, strict=False, description="r: of the chains drawn, a share r^d is trained down to depth d (0 is the first); 1: all"
    )
    down_sample_ratio_min: float = Field(0.2, gt=0, le=1, strict=False, description="the share of chains that is trained whole, at least")
    loss_step_decay: float = Field(1.0, gt=0, le=1, strict=False, description="depth d weighs decay^d")
    mask_token_id: int | None = Field(None, description="id that never occurs in text; default: chosen from the target's vocabulary")

    @model_validator(mode="after")
    def _whole_sight(self):
        if self.sliding_window is not None or self.layer_types is not None:
            raise ValueError(
                f"sliding_window={self.sliding_window}, layer_types={self.layer_types}: the rows of a P-EAGLE draft see the whole text; "
                "leave both out, or use draft.method=dflash"
            )
        return self
