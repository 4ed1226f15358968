"""The `draft` section of a run with `method: dspark`. Defaults are the paper's recipe, but for the weights of slots (docs/dspark.md)."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from torchspec.methods.block.config import BlockConfig


class DSparkConfig(BlockConfig):
    method: Literal["dspark"]
    block_size: int = Field(7, ge=2, description="rows B of a block: the anchor and B-1 masks; serve with B draft tokens")
    loss: dict[Literal["ce", "kl", "tv", "lk"], PositiveFloat] = Field(
        {"ce": 0.1, "tv": 1.8},
        min_length=1,
        description="weights of: ce, of the text's tokens; kl, tv and lk, divergences from the target's law; tv is half of the L1 norm",
    )
    sample_from_anchor: bool = Field(
        True, description="the anchor's row proposes the first token; false: it proposes none, as in DFlash, and B-1 tokens are drafted"
    )
    markov_rank: PositiveInt = Field(256, description="width r of the state between two tokens of a block")
    markov_head_type: Literal["vanilla", "gated", "rnn"] = Field(
        "vanilla", description="the state is: the token before; that, gated by the row's state; recurrent. vLLM and llama.cpp serve vanilla"
    )
    confidence_loss: NonNegativeFloat = Field(
        1.0, description="weight of the confidence head's cross-entropy against the chance of acceptance; 0: no such head"
    )
    confidence_head_with_markov: bool = Field(
        True, description="the confidence head reads the token before as well; llama.cpp serves no other"
    )
    untaught: ClassVar[dict] = {"method": "dspark", "loss": {"ce": 1.0}, "confidence_loss": 0.0}

    @property
    def compares(self) -> bool:
        """The chance of acceptance, which the confidence learns, follows from the target's law, whatever the other losses."""
        return super().compares or self.confidence_loss > 0
