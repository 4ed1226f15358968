"""The `draft` section of a run with `method: eagle3`."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from torchspec.methods.config import DraftShape


class EagleShape(DraftShape):
    """What EAGLE-3 and P-EAGLE have in common."""

    num_anchors: PositiveInt = Field(512, description="chains per document and epoch, sampled without replacement")
    loss: Literal["kl", "tv", "lk"] = Field(
        "kl", description="forward KL to the target; tv: total variation, 1 - acceptance; lk: KL that gives way to tv as acceptance rises"
    )
    target_layer_ids: tuple[int, ...] | None = Field(
        None, strict=False, description="captured layers as z-ids; default: 1, N/2-1, N-4, as servers assume"
    )
    draft_vocab_size: PositiveInt | None = Field(
        None, description="the draft proposes only the most frequent supervised tokens; none: all of the target's"
    )
    norm_before_residual: bool = Field(False, description="the residual stream starts from the normed features")
    norm_before_fc: bool = Field(False, description="one norm over all captured layers before fc")
    fc_norm: bool = Field(False, description="a norm for each captured layer before fc (EAGLE-3.1)")


class Eagle3Config(EagleShape):
    method: Literal["eagle3"] = "eagle3"
    ttt_length: PositiveInt = Field(7, description="steps of the chain that the draft is trained on; serve with as many draft tokens")
    loss_step_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        strict=False,
        description="step i weighs decay^i, 0.8 as published; none: what it adds to the expected acceptance (D-PACE)",
    )
    norm_output: bool = Field(False, description="the next step continues from the normed output (EAGLE-3.1)")

    @model_validator(mode="after")
    def _several_layers(self):
        if self.target_layer_ids is not None and len(self.target_layer_ids) == 1:
            raise ValueError(
                f"target_layer_ids={list(self.target_layer_ids)} names one layer, of which SGLang leaves out fc and norms; name three"
            )
        return self

    @model_validator(mode="after")
    def _whole_sight(self):
        if self.sliding_window is not None or self.layer_types is not None:
            raise ValueError(
                f"sliding_window={self.sliding_window}, layer_types={self.layer_types}: SGLang and llama.cpp serve an EAGLE-3 layer "
                "without its window; leave both out, or use draft.method=dflash"
            )
        return self
