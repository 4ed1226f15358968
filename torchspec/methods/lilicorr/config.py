"""The `draft` section of a run with `method: lilicorr`; the keys of the lattice are those of the config.json."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from torchspec.methods.block.config import BlockConfig

OF_THE_LAW = {"pen", "tv"}  # losses that compare with the target's law
WIDTH = 1024  # of the published lattice, for a target of width 4096


class LiLiCorrConfig(BlockConfig):
    method: Literal["lilicorr"]
    lilicorr_candidate_topk: Literal[2, 4, 8, 16] = Field(8, description="candidates K of each slot")
    lilicorr_hidden_size: PositiveInt | None = Field(
        None, description=f"width h of the lattice; default: {WIDTH}, or the draft's width where that is less"
    )
    lilicorr_num_layers: PositiveInt = Field(2, description="layers over the lattice")
    lilicorr_num_heads: PositiveInt = Field(8, description="their heads, a divisor of h")
    lilicorr_mlp_ratio: PositiveFloat = Field(2.0, description="width of their MLP in units of h")
    lilicorr_factor_dim: PositiveInt | None = Field(None, description="size of the vectors whose cosine is a pair's score; default: h")
    lilicorr_logit_scale: PositiveFloat = Field(8.0, description="what a cosine is multiplied by to be a logit")
    lilicorr_loss: dict[Literal["ce", "margin", "pen", "tv"], PositiveFloat] = Field(
        {"ce": 0.25, "pen": 0.25},
        min_length=1,
        description="weights of what the lattice learns from, beside `loss`: ce and margin, of the text's path; pen and tv, of the "
        "target's law over the candidates (docs/lilicorr.md)",
    )

    untaught: ClassVar[dict] = {"method": "lilicorr", "loss": {"ce": 1.0}, "lilicorr_loss": {"ce": 1.0}}

    @property
    def taught(self) -> bool:
        return self.compares or self.compares_candidates

    @property
    def compares_candidates(self) -> bool:
        """Whether the lattice's loss asks for the target's law."""
        return bool(OF_THE_LAW & self.lilicorr_loss.keys())
