"""DFlash (arXiv 2602.06036): the backbone alone, each slot's proposal from its own state (docs/dflash.md)."""

from torchspec.methods.block.method import BlockMethod
from torchspec.methods.dflash.config import DFlashConfig


class DFlash(BlockMethod):
    Options = DFlashConfig
    architecture = "DFlashDraftModel"
