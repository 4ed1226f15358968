"""What EAGLE-3 and P-EAGLE are alike in, as the trainer and the evaluator see them: chains of drafts that read features and tokens.

A method is a subclass: its loss, its proposals, and `states`, what its steps compute where the text is what comes before them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerBase

from torchspec.data.dataset import PromptDataset
from torchspec.errors import ContractError
from torchspec.methods import walk
from torchspec.methods.blocks import following_tokens
from torchspec.methods.eagle3 import format
from torchspec.methods.eagle3.config import EagleShape
from torchspec.methods.eagle3.model import EagleDraft
from torchspec.methods.fresh import norm_scale
from torchspec.methods.vocabulary import DraftVocabulary, frequent_vocabulary, whole_vocabulary
from torchspec.methods.walk import Walk
from torchspec.nn.attention import BlockLayout
from torchspec.records import Features
from torchspec.target.frozen import FrozenTarget

Model = Callable[..., Tensor]  # the draft as the trainer wraps it: mixed precision, sharding
PROPOSAL_CHAINS = 256  # per forward and per product with the head, when a whole document is proposed: bounds memory


class EagleMethod(ABC):
    Options: ClassVar[type[EagleShape]]
    Draft: ClassVar[type[EagleDraft]]
    name: ClassVar[str]
    length: ClassVar[str]  # key of the config.json: drafts of a chain
    captured: ClassVar[Callable[[PreTrainedConfig], tuple[int, ...]]]  # z-ids that the draft reads, by its config.json
    check_serves: ClassVar[Callable[[PreTrainedConfig, FrozenTarget], None]]
    vllm_traps = staticmethod(format.vllm_traps)
    repeated = staticmethod(format.repeated)
    head = ()
    confident = False

    def __init__(self, config: LlamaConfig, target: FrozenTarget, options: EagleShape, vocabulary: DraftVocabulary | None):
        """vocabulary: what is trained; none for a draft from a folder that brings its own."""
        self.config, self.target, self.options, self.vocabulary = config, target, options, vocabulary
        self.block_size = self.draft_tokens(config) + 1
        self.layer_ids = (*self.captured(config), config.num_target_layers - 1)  # the last one for the target's distribution

    @classmethod
    def draft_tokens(cls, config: PreTrainedConfig) -> int:
        return vars(config)[cls.length]

    @classmethod
    def for_run(
        cls, options: EagleShape, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset
    ) -> "EagleMethod":
        """A new draft for a target and its training data."""
        config, vocabulary = cls.new_config(options, target, tokenizer, dataset), whole_vocabulary(target)
        if options.draft_vocab_size is not None:
            vocabulary, config.draft_vocab_coverage = frequent_vocabulary(target, dataset, options.draft_vocab_size)
        return cls(config, target, options, vocabulary)

    @staticmethod
    @abstractmethod
    def new_config(options: EagleShape, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset) -> LlamaConfig:
        """The config.json of a new draft."""

    @classmethod
    def from_config(cls, config: PreTrainedConfig, target: FrozenTarget) -> "EagleMethod":
        """For a draft folder, ours or another's; training options play no part at inference."""
        cls.check_serves(config, target)
        return cls(config, target, cls.Options(), whole_vocabulary(target) if config.draft_vocab_size is None else None)

    def skeleton(self) -> EagleDraft:
        return self.Draft(self.config, self.target.head.dtype)

    def build(self, generator: torch.Generator) -> EagleDraft:
        """A fresh draft whose logits have variance 1 or less."""
        model = self.skeleton()
        model.initialise(generator, norm_scale(self.target.head))
        if self.config.draft_vocab_size is not None:
            model.keep(self.vocabulary)
        return model

    def served_vocabulary(self, model: EagleDraft) -> DraftVocabulary:
        """The one that came with the draft, or all of the target's."""
        return self.vocabulary if self.config.draft_vocab_size is None else model.kept()

    def embed(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, self.target.embedding)

    def text_log_probabilities(self, model: EagleDraft, features: Features, anchors: Tensor, temperature: float) -> Tensor:
        """log q_k(x_{a+k}) of the text's own tokens after each anchor a, at a temperature: [n] -> float32 [n, B-1]."""
        vocabulary = self.served_vocabulary(model)
        walks = self.walks(model, vocabulary, features, anchors)
        return torch.cat([walk.log_probabilities(*steps, vocabulary, temperature) for steps in walks])

    def matches(self, model: EagleDraft, features: Features, anchors: Tensor) -> Tensor:
        """How many drafts after each anchor of a document are the text's own tokens, up to the first that is not: [n] -> [n].

        A chain that was right so far has fed itself the text.
        """
        vocabulary = self.served_vocabulary(model)
        return torch.cat([walk.matches(*steps, vocabulary) for steps in self.walks(model, vocabulary, features, anchors)])

    def walks(
        self, model: EagleDraft, vocabulary: DraftVocabulary, features: Features, anchors: Tensor
    ) -> Iterator[tuple[Walk, Tensor, Tensor]]:
        """Along the text after n' anchors of a document at a time: the walk, their tokens [n'] and the text's next ones [n', B-1]."""
        ids = features.prompt.ids
        for layout in self.layouts(features, anchors):
            after = following_tokens(ids, layout.anchors[0], self.block_size)
            yield Walk(self.states(model, features, layout, after), vocabulary.project), ids[layout.anchors[0]], after

    @abstractmethod
    def states(self, model: EagleDraft, features: Features, layout: BlockLayout, after: Tensor) -> Tensor:
        """Normed ones of all steps of a document's chains [n, B-1, H], in the text whose tokens after the anchors are `after` [n, B-1]."""

    def layouts(self, features: Features, anchors: Tensor) -> Iterator[BlockLayout]:
        """The chains after each anchor of a document, some at a time."""
        if len(anchors) and int(anchors.min()) < 1:
            index = features.prompt.index
            raise ContractError(f"sample {index} is an answer from its first token on; {self.name} drafts after a prompt only")
        for part in anchors.split(PROPOSAL_CHAINS):
            yield BlockLayout(part[None], torch.ones_like(part[None], dtype=torch.bool), (len(features.prompt.ids),), self.block_size)
