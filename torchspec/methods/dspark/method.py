"""DSpark (arXiv 2607.05147): each slot reads the token before it, and says how likely its own is accepted (docs/dspark.md).

Trained with the text's own tokens before the slots: up to the first wrong draft, decoding has the same.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import Qwen3Config

from torchspec.errors import UserError
from torchspec.methods import walk
from torchspec.methods.block.blocks import Blocks, Lesson
from torchspec.methods.block.generate import BlockDrafter
from torchspec.methods.block.method import BlockMethod, Model
from torchspec.methods.dspark import format
from torchspec.methods.dspark.config import DSparkConfig
from torchspec.methods.dspark.model import DSparkDraft
from torchspec.methods.dspark.walk import MarkovWalk
from torchspec.methods.temperatures import FILE
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.losses import Correction
from torchspec.records import Features
from torchspec.target.frozen import FrozenTarget


class DSpark(BlockMethod):
    Options, Draft = DSparkConfig, DSparkDraft
    architecture = "Qwen3DSparkModel"
    meaning, head = format.MEANING, (*format.MARKOV, *format.CONFIDENCE)
    add_settings, repeated, read_settings = (staticmethod(f) for f in (format.add_settings, format.repeated, format.read_settings))
    uncomputed, check_folder = staticmethod(format.uncomputed), staticmethod(format.check_folder)
    vllm_traps, sglang_traps = staticmethod(format.vllm_traps), staticmethod(format.sglang_traps)
    llamacpp_traps = staticmethod(format.llamacpp_traps)

    def __init__(self, config: Qwen3Config, target: FrozenTarget, options: DSparkConfig, counts: Tensor):
        super().__init__(config, target, options, counts)
        self.factor_width = config.dflash_config["markov_rank"]
        self.confident = config.dflash_config["enable_confidence_head"]

    # --- training

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """And of every slot: the token before, what a head that looks at the state joins and makes, float32 of the confidence's input."""
        kind, rank, width = self.config.dflash_config["markov_head_type"], self.factor_width, self.config.hidden_size
        of_markov = {"vanilla": 2 * rank, "gated": width + 6 * rank, "rnn": width + 14 * rank}[kind]
        of_confidence = 3 * (width + rank) if self.confident else 0
        return super().kept_values(documents, blocks, tokens, compiled) + documents * blocks * self.drafts * (of_markov + of_confidence)

    def score(self, draft: DSparkDraft, blocks: Blocks, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The mixture of losses and the confidence's own, with the same weights: both are worth what the slot adds to a block."""
        embedded = draft.markov_head.markov_w1(lesson.before)  # [n, S, r]
        factors = draft.markov_head.factors(embedded, blocks.states)
        readout = lesson.vocabulary.of(draft.markov_head.markov_w2.weight)
        found = self.head_losses(blocks, lesson, Correction(lesson.pick(factors), readout))
        weights, metrics = self.slot_weights(lesson, found), self.slot_metrics(lesson, found)
        if not self.confident:
            return (found.loss * weights).sum(), weights.sum(), metrics
        logits = lesson.pick(draft.confidence_head(blocks.states, embedded))
        wrong = binary_cross_entropy_with_logits(logits, found.overlap, reduction="none")
        loss = found.loss + self.options.confidence_loss * wrong
        return (loss * weights).sum(), weights.sum(), metrics | _confidence_metrics(lesson, logits.detach().sigmoid(), found.overlap)

    # --- inference

    def walk(self, model: DSparkDraft, blocks: Blocks, vocabulary: DraftVocabulary) -> MarkovWalk:
        return MarkovWalk(blocks.states, vocabulary.project, model)

    def drafter(self, model: DSparkDraft, least_survival: float = 0.0) -> BlockDrafter:
        """least_survival: drafting stops where the chance that all drafts up to the next are accepted falls below; 0: never."""
        stop = walk.Stop(least_survival, self.temperatures) if least_survival else None
        return BlockDrafter(model, self.target, self.served_vocabulary(model), self.proposing, self.walk, stop)

    @property
    def temperatures(self) -> list[float]:
        """Of the confidence of each slot: fitted ones that lie in the folder, or 1."""
        fitted = self.config.dflash_config.get("confidence_temperatures", [1.0] * self.drafts)
        if len(fitted) < self.drafts:
            raise UserError(f"{FILE} holds {len(fitted)} temperatures, but the draft proposes {self.drafts} tokens; fit them again")
        return fitted[: self.drafts]

    def confidences(self, model: Model, features: Features, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Of greedy drafts after each anchor of a document: logits of confidence [n, S], and whether all drafts so far are right [n, S]."""
        vocabulary, parts = self.served_vocabulary(model), self._blocks(model, features, anchors)
        found = [walk.confidences(self.walk(model, b, vocabulary), b.anchors, text, vocabulary) for b, text in parts]
        logits, right = zip(*found, strict=True)
        return torch.cat(logits), torch.cat(right)


def _confidence_metrics(lesson: Lesson, confidence: Tensor, overlap: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and counts per slot: what the head says, what it is to say, and how far apart these are."""
    counts = lesson.slots.mask.sum((0, 1))[1:]
    said = {"slot_confidence": confidence, "slot_overlap": overlap, "slot_confidence_error": (confidence - overlap).abs()}
    return {name: (lesson.slots.spread(values).sum((0, 1))[1:], counts) for name, values in said.items()}
