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
    head: tuple[str, ...]  # patterns of parameters that a draft of another method lacks, and that start afresh where it is gone on with
    confident: bool  # it says how likely a draft is accepted; then it has `temperatures`, `confidences`, and drafters that stop early
    meaning: dict[str, tuple[str, ...]]  # setting of the config.json -> parameters that are others with another value, whatever their shape

    @classmethod
    def for_run(cls, options, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset) -> "Method": ...
    @classmethod
    def from_config(cls, config: PreTrainedConfig, target: FrozenTarget) -> "Method": ...
    @staticmethod
    def check_folder(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None: ...
    @staticmethod
    def repeated(values: dict) -> dict: ...
    @staticmethod
    def vllm_traps(config: PreTrainedConfig) -> list[str]: ...
    @staticmethod
    def sglang_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]: ...
    @staticmethod
    def llamacpp_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]: ...
    @staticmethod
    def gguf_facts(config: PreTrainedConfig) -> dict[str, object]: ...
    @classmethod
    def draft_tokens(cls, config: PreTrainedConfig) -> int: ...  # proposed per step
    def build(self, generator: torch.Generator) -> nn.Module: ...
    def skeleton(self) -> nn.Module: ...
    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int: ...
    def loss(self, model, batch: Batch, seed: int, progress: float = 0.0) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """progress: share of the run's optimizer steps that are done, for losses that change on the way."""
        ...

    def propose(self, model, features: Features, anchors: Tensor) -> Tensor: ...
    def matches(self, model, features: Features, anchors: Tensor) -> Tensor: ...
    def text_log_probabilities(self, model, features: Features, anchors: Tensor, temperature: float) -> Tensor: ...
    def drafter(self, model: nn.Module) -> Drafter: ...


def method_class(name: str) -> type:
    module, _, attribute = METHODS[name].implementation.partition(":")
    return getattr(import_module(module), attribute)


def traps_of(method: type[Method], config: PreTrainedConfig, target_type: str | None) -> dict[str, list[str]]:
    """Engine -> what it would compute otherwise, or cannot load. target_type: of the target's config; none where it is not at hand."""
    return {
        "vllm": method.vllm_traps(config),
        "sglang": method.sglang_traps(config, target_type),
        "llamacpp": method.llamacpp_traps(config, target_type),
    }


def check_served(engine: str | None, method: Method) -> None:
    """Refuses a draft that this engine would compute otherwise than it was trained, and say nothing."""
    traps = traps_of(type(method), method.config, method.target.config.model_type)
    if traps.get(engine):
        others = [f"serve it with {other}" for other, found in traps.items() if not found]
        fix = others[0] if others else "no engine serves it, so evaluate it in this process"
        raise UserError(f"this draft cannot be served with {engine}: {'; '.join(traps[engine])}; {fix}")
