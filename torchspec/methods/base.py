"""What the trainer, the evaluator and the exporter need of a draft method; which methods there are stands in registry.py."""

from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from torchspec.acceptance.sampling import Sampler
from torchspec.data.dataset import PromptDataset
from torchspec.errors import UserError
from torchspec.methods.registry import METHODS
from torchspec.records import Batch, Features
from torchspec.target.frozen import FrozenTarget


class Drafter(Protocol):
    """Drafts for one sequence at inference."""

    block_size: int

    def reset(self) -> None: ...

    def extend(self, ids: Tensor, context: Tensor) -> None:
        """The next n committed tokens [n] and their features [n, K*H_t]."""
        ...

    def propose(self, last_token: int, sampler: Sampler) -> tuple[Tensor, Tensor | None]:
        """The last committed token, whose features do not exist yet -> the next B-1 tokens [B-1], and what they were drawn from:
        probabilities [B-1, V] over the target's tokens; none where greedy.
        """
        ...


class Method(Protocol):
    config: PreTrainedConfig  # the draft's config.json
    layer_ids: tuple[int, ...]  # z-ids of the captured target layers
    block_size: int  # most tokens committed per target forward
    meaning: dict[str, tuple[str, ...]]  # setting of the config.json -> parameters that are others with another value, whatever their shape

    @classmethod
    def for_run(cls, options, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset) -> "Method": ...
    @classmethod
    def from_config(cls, config: PreTrainedConfig, target: FrozenTarget) -> "Method": ...
    @staticmethod
    def check_folder(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None: ...
    @staticmethod
    def sglang_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]: ...
    @staticmethod
    def llamacpp_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]: ...
    @staticmethod
    def gguf_facts(config: PreTrainedConfig) -> dict[str, object]: ...
    def build(self, generator: torch.Generator) -> nn.Module: ...
    def skeleton(self) -> nn.Module: ...
    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int: ...
    def loss(self, model, batch: Batch, seed: int) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]: ...
    def propose(self, model, features: Features, anchors: Tensor) -> Tensor: ...
    def matches(self, model, features: Features, anchors: Tensor) -> Tensor: ...
    def text_log_probabilities(self, model, features: Features, anchors: Tensor, temperature: float) -> Tensor: ...
    def drafter(self, model: nn.Module) -> Drafter: ...


def method_class(name: str) -> type:
    module, _, attribute = METHODS[name].implementation.partition(":")
    return getattr(import_module(module), attribute)


def check_served(engine: str | None, method: Method) -> None:
    """Refuses a draft that this engine would compute otherwise than it was trained, and say nothing."""
    traps_of = {"sglang": method.sglang_traps, "llamacpp": method.llamacpp_traps}.get(engine)
    traps = traps_of(method.config, method.target.config.model_type) if traps_of else []
    if traps:
        raise UserError(f"this draft cannot be served with {engine}: {'; '.join(traps)}; serve it with vllm")
