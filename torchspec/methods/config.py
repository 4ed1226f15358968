"""The shape of a draft: keys of every method's `draft` section. What is left out follows from the target (taken_over.py)."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from torchspec.section import Section

FULL, SLIDING = "full_attention", "sliding_attention"


class DraftShape(Section):
    num_attention_heads: PositiveInt | None = Field(None, description="query heads; default: the target's, or width / 128 where it has MLA")
    num_key_value_heads: PositiveInt | None = Field(None, description="key heads; default: the target's, at most 8 where it has MLA")
    head_dim: PositiveInt | None = Field(
        None, multiple_of=2, description="size of a head, even; default: the target's, 128 where it has MLA"
    )
    intermediate_size: PositiveInt | None = Field(
        None, description="width of the MLP; default: the target's, or 3 times its width where that is one expert's"
    )
    rope: Literal["target", "plain"] = Field(
        "target", description="rotary settings; plain: the target's theta without scaling, which every engine serves alike"
    )
    sliding_window: PositiveInt | None = Field(
        None,
        description="positions that a row of a sliding layer sees, itself included; none: all, in every layer. EAGLE-3, P-EAGLE: none",
    )
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = Field(
        None, strict=False, description="of each draft layer; default: all slide where sliding_window is set, none elsewhere"
    )

    @model_validator(mode="after")
    def _heads(self):
        heads, keys = self.num_attention_heads, self.num_key_value_heads
        if heads and keys and heads % keys:
            raise ValueError(f"num_attention_heads={heads} is no multiple of num_key_value_heads={keys}; set one that is")
        return self

    @model_validator(mode="after")
    def _window(self):
        if self.layer_types is not None and (SLIDING in self.layer_types) != (self.sliding_window is not None):
            raise ValueError(
                f"sliding_window={self.sliding_window} does not go with layer_types={list(self.layer_types)}; "
                "set a window where a layer slides, and none where none does"
            )
        return self
