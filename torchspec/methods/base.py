"""Draft methods by name. A method is a folder and one line here; trainer, metrics and evaluator never name one."""

from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from torchspec.records import Batch, Features
from torchspec.target import FrozenTarget

METHODS = {"dflash": "torchspec.methods.dflash.method:DFlash"}
ARCHITECTURES = {"DFlashDraftModel": "dflash"}  # of a draft's config.json -> method


class Drafter(Protocol):
    """Drafts for one sequence at inference."""

    block_size: int

    def reset(self) -> None: ...
    def extend(self, context: Tensor) -> None: ...
    def propose(self, last_token: int) -> Tensor: ...


class Method(Protocol):
    """What the trainer and the evaluator need of a draft method."""

    config: PreTrainedConfig  # the draft's config.json
    layer_ids: tuple[int, ...]  # z-ids of the captured target layers
    block_size: int  # most tokens committed per target forward

    @classmethod
    def for_run(cls, options, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, counts: Tensor) -> "Method": ...
    @classmethod
    def from_config(cls, config: PreTrainedConfig, target: FrozenTarget) -> "Method": ...
    def build(self, generator: torch.Generator) -> nn.Module: ...
    def skeleton(self) -> nn.Module: ...
    def loss(self, model, batch: Batch, seed: int) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]: ...
    def propose(self, model, features: Features, anchors: Tensor) -> Tensor: ...
    def drafter(self, model: nn.Module) -> Drafter: ...


def method_class(name: str) -> type:
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
