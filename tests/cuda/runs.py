"""A run without its data and its target: the draft of a config, its optimizers, and batches of random text."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from torchspec.config import RunConfig
from torchspec.methods.base import Method, method_class
from torchspec.nn.device import resolve_dtype
from torchspec.records import Batch
from torchspec.target.frozen import FrozenTarget
from torchspec.training.build import Run
from torchspec.training.distributed import World, parallelise
from torchspec.training.optim import build_optimizers

# Knows one token, which the text has, so the mask is the first one that the text leaves out.
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))


class Text:
    """Counts of a text that leaves the last tenth of the vocabulary out."""

    def token_counts(self, size: int, supervised: bool = False) -> Tensor:
        return (torch.arange(size) < size * 9 // 10).long()


def method_of(config: RunConfig, target: PreTrainedConfig, embedding: Tensor, head: Tensor) -> Method:
    norm = torch.nn.RMSNorm(target.hidden_size, dtype=head.dtype, device=head.device).requires_grad_(False)
    frozen = FrozenTarget(Path("none"), target, embedding, head, norm)
    return method_class(config.draft.method).for_run(config.draft, frozen, TOKENIZER, Text())


def run_of(config: RunConfig, method: Method, model: torch.nn.Module, device: torch.device) -> Run:
    world = World(0, 1, device)
    compute = parallelise(model, world, config.training, resolve_dtype(config.model.dtype))
    return Run(config, None, None, [], frozenset(), method, model, compute, build_optimizers(model, config.training), None, None, world)


def batch_of(method: Method, lengths: tuple[int, ...], prompt: int, context: Tensor) -> Batch:
    """Documents of random tokens, the first `prompt` of each not supervised; features where `context` is."""
    vocabulary, generator = method.target.config.vocab_size, torch.Generator().manual_seed(2)
    ids = torch.randint(vocabulary * 9 // 10, (sum(lengths),), generator=generator)
    mask = torch.cat([torch.arange(length) >= prompt for length in lengths])
    return Batch(ids, mask, context, lengths, tuple(range(len(lengths))), 0).check()


def width_of(method: Method) -> int:
    """Of a row of features."""
    return method.target.config.hidden_size * len(method.layer_ids)
