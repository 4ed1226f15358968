"""A method's draft folder: its config.json and tensors, and what engines make of them. What is said here is DFlash's (format.py); a method
with a head overrides what is its own.
"""

from pathlib import Path
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.methods.block import format
from torchspec.methods.block.config import BlockConfig
from torchspec.target.frozen import FrozenTarget


class BlockFolder:
    architecture: ClassVar[str]
    check_folder = staticmethod(format.check_folder)
    sglang_traps = staticmethod(format.sglang_traps)
    vllm_traps = staticmethod(format.vllm_traps)
    llamacpp_traps = staticmethod(format.llamacpp_traps)
    gguf_facts = staticmethod(format.gguf_facts)
    meaning = format.MEANING
    proposing_rows = staticmethod(format.proposing_rows)
    uncomputed = staticmethod(format.uncomputed)

    @classmethod
    def new_config(cls, options: BlockConfig, target: FrozenTarget, mask_token_id: int) -> Qwen3Config:
        """The config.json of a new draft: the backbone's, with the method's own keys."""
        config = format.draft_config(options, target.config, tuple(target.embedding.shape), mask_token_id)
        config.architectures = [cls.architecture]
        cls.add_settings(config, options)
        return config

    @staticmethod
    def add_settings(config: Qwen3Config, options: BlockConfig) -> None:
        """Writes the head's keys into a new config.json, inside of `dflash_config`."""

    @staticmethod
    def repeated(values: dict) -> dict:
        """Of an exported config.json: what the method's readers look for in a second place -> to be written at the top as well."""
        return {}

    @staticmethod
    def read_settings(folder: Path, values: dict) -> dict:
        """Of a draft folder of any project: the head's keys, wherever its config.json has them -> as ours has them in `dflash_config`."""
        return {}

    @staticmethod
    def fitted(tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
        """A draft's tensors as its own readers take them, for a block that may be shorter than the trained one."""
        return tensors

    @classmethod
    def check_serves(cls, config: PreTrainedConfig, target: FrozenTarget) -> None:
        """A draft folder fits its target and asks for nothing that is not computed here."""
        format.check_serves(config, target, cls.uncomputed(config.to_dict()))
