"""The `draft` section of a run with `method: dflash`."""

from typing import Literal

from torchspec.methods.block.config import BlockConfig


class DFlashConfig(BlockConfig):
    method: Literal["dflash"] = "dflash"
