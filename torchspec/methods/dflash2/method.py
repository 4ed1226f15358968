"""DFlash2: blocks read themselves by convolutions, and a slot proposes one of its best tokens, by the one before it (docs/dflash2.md).

Trained with the text's own tokens before the slots: up to the first wrong draft, decoding has the same.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.methods.block.blocks import Blocks, Lesson
from torchspec.methods.block.method import BlockMethod
from torchspec.methods.dflash2 import format
from torchspec.methods.dflash2.config import DFlash2Config
from torchspec.methods.dflash2.lesson import Candidates, choice_losses, with_label
from torchspec.methods.dflash2.memory import conv_values, selector_values
from torchspec.methods.dflash2.model import DFlash2Draft
from torchspec.methods.dflash2.walk import SelectorWalk
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.chosen import chosen_products
from torchspec.nn.losses import HeadLosses
from torchspec.target.frozen import FrozenTarget


class DFlash2(BlockMethod):
    Options, Draft = DFlash2Config, DFlash2Draft
    architecture = "DFlash2DraftModel"
    meaning, head = format.MEANING, (*format.CONVOLUTIONS, *format.SELECTOR)
    add_settings, uncomputed = staticmethod(format.add_settings), staticmethod(format.uncomputed)
    llamacpp_traps = staticmethod(format.llamacpp_traps)

    def __init__(self, config: Qwen3Config, target: FrozenTarget, options: DFlash2Config, counts: Tensor):
        super().__init__(config, target, options, counts)
        self.candidates = config.dflash_config["selector_top_k"]

    @classmethod
    def check_serves(cls, config: PreTrainedConfig, target: FrozenTarget) -> None:
        super().check_serves(config, target)
        format.check_sizes(config)

    # --- training

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        blocks *= documents
        of_head = conv_values(self.config, blocks * self.rows, compiled) + selector_values(self.config, blocks * self.drafts)
        return super().kept_values(documents, blocks // documents, tokens, compiled) + of_head

    def score(self, draft: DFlash2Draft, blocks: Blocks, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """`loss` of all logits and `selector_loss` of the choice, weighed by how likely the draft proposes the label."""
        alone = self.head_losses(blocks, lesson)
        candidates = with_label(alone.best, lesson.vocabulary.index[lesson.labels])
        found = self._chosen(draft, blocks, lesson, alone, candidates)
        weights, metrics = self.slot_weights(lesson, found), self.slot_metrics(lesson, found)
        held, counts = lesson.slots.spread(candidates.held), lesson.slots.mask.sum((0, 1))[1:]
        metrics["slot_candidate_recall"] = held.sum((0, 1))[1:], counts
        return (found.loss * weights).sum(), weights.sum(), metrics

    def _chosen(self, draft: DFlash2Draft, blocks: Blocks, lesson: Lesson, alone: HeadLosses, candidates: Candidates) -> HeadLosses:
        """The same of what is proposed: a label that is no candidate by itself has no chance, and what is proposed there is wrong."""
        states, vocabulary, selector = lesson.pick(blocks.states), lesson.vocabulary, draft.candidate_selector
        logits = chosen_products(states, vocabulary.head, candidates.rows)
        added = selector(selector.hidden_projection(states), lesson.pick(lesson.before), vocabulary.ids[candidates.rows])
        p = lesson.teacher.logits(vocabulary.head, candidates.rows).softmax(-1) if self.taught else None
        choice = choice_losses(logits + added, candidates.place, p, self.options.selector_loss)
        first = candidates.rows.gather(1, choice.first[:, None])[:, 0]
        return replace(
            alone,
            loss=alone.loss + choice.loss,
            cross_entropy=choice.cross_entropy.detach().masked_fill(~candidates.held, torch.inf),
            overlap=None if p is None else choice.overlap.detach() * candidates.held,
            predictions=torch.where(candidates.held, first, alone.predictions),
        )

    # --- inference

    def walk(self, model: DFlash2Draft, blocks: Blocks, vocabulary: DraftVocabulary) -> SelectorWalk:
        law = format.logit_law(self.config)
        return SelectorWalk(blocks.states, vocabulary.project, model.candidate_selector, self.candidates, law)
