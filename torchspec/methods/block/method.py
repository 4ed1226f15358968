"""The methods that draft a block at once, as the trainer and the evaluator see them: anchors, loss, proposals, drafter.

Alignment of one block of 4 rows, anchor 10:

      row          0      1      2      3
      input        x_10   mask   mask   mask
      position     10     11     12     13
      predicts     -      x_11   x_12   x_13      a proposal for every row but the anchor's (DFlash)
                   x_11   x_12   x_13   x_14      or for every row, where the method samples from the anchor
      sees         features of x_0 .. x_9, and all rows of its own block; in a sliding layer those of the last `sliding_window`
                   positions, and no later row

A method is a subclass: its head (`walk` at inference, `score` in training) and the keys of its format. DFlash has no head.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Qwen3Config

from torchspec.acceptance.sampling import GREEDY
from torchspec.chat.stops import stop_ids
from torchspec.data.dataset import PromptDataset
from torchspec.methods import walk
from torchspec.methods.block.attention import attention
from torchspec.methods.block.blocks import Blocks, Lesson, blocks_of
from torchspec.methods.block.config import BlockConfig
from torchspec.methods.block.folder import BlockFolder
from torchspec.methods.block.format import sights
from torchspec.methods.block.generate import BlockDrafter
from torchspec.methods.block.memory import kept_values
from torchspec.methods.block.model import BlockDraft
from torchspec.methods.blocks import block_labels, following_tokens, rows_before, sample_anchors, seeded, slot_metrics, taught_by
from torchspec.methods.fresh import norm_scale
from torchspec.methods.mask_token import choose_mask_token
from torchspec.methods.vocabulary import DraftVocabulary, whole_vocabulary
from torchspec.methods.walk import Walk
from torchspec.methods.weights import decay_weights, dpace_weights
from torchspec.nn.attention import BlockLayout
from torchspec.nn.loss_vocabulary import LossVocabulary
from torchspec.nn.losses import Correction, HeadLosses, head_losses, loss_values
from torchspec.nn.send import send
from torchspec.records import Batch, Features
from torchspec.target.frozen import FrozenTarget

Model = Callable[..., Tensor]  # the draft as the trainer wraps it: mixed precision, sharding
PROPOSAL_BLOCKS = 256  # per forward and per product with the head, when a whole document is proposed: bounds memory


class BlockMethod(BlockFolder):
    Options: ClassVar[type[BlockConfig]]
    Draft: ClassVar[type[BlockDraft]] = BlockDraft
    head: ClassVar[tuple[str, ...]] = ()  # parameters that the backbone has not, as patterns of names
    candidates = 1  # of each slot that its head chooses among, by the logits before it has changed them
    factor_width = 0  # E, where the head adds factor @ readout.T to the logits
    confident = False  # it says how likely a draft is accepted

    def __init__(self, config: Qwen3Config, target: FrozenTarget, options: BlockConfig, counts: Tensor):
        """counts [V]: occurrences of every token in the training data."""
        self.config, self.target, self.options = config, target, options
        self.vocabulary = LossVocabulary(target.head, counts, options.loss_negatives)
        self.whole_vocabulary = whole_vocabulary(target)
        self.rows, self.proposing = config.block_size, self.proposing_rows(config.dflash_config)
        self.drafts = self.draft_tokens(config)
        self.block_size = self.drafts + 1
        self.mask_token_id = config.dflash_config["mask_token_id"]
        self.sights = sights(config)
        self.taught = options.taught  # by the target's law, which follows from its last layer's states
        self.layer_ids = (*config.dflash_config["target_layer_ids"], *([target.num_layers - 1] if self.taught else []))

    @classmethod
    def draft_tokens(cls, config: Qwen3Config) -> int:
        return len(range(config.block_size)[cls.proposing_rows(config.dflash_config)])

    @classmethod
    def for_run(
        cls, options: BlockConfig, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset
    ) -> "BlockMethod":
        """A new draft for a target and its training data."""
        counts = dataset.token_counts(len(target.embedding))
        mask_token_id = choose_mask_token(tokenizer, counts, options.mask_token_id, stop_ids(target.folder, tokenizer))
        return cls(cls.new_config(options, target, mask_token_id), target, options, counts)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, target: FrozenTarget) -> "BlockMethod":
        """For a draft folder, ours or another's; training options play no part at inference, nor does a last layer."""
        cls.check_serves(config, target)
        return cls(config, target, cls.Options(**cls.Options.untaught), torch.ones(len(target.head)))

    def skeleton(self) -> BlockDraft:
        return self.Draft(self.config, self.target.head.dtype)

    def build(self, generator: torch.Generator) -> BlockDraft:
        """A fresh draft whose logits have variance 1 or less."""
        model = self.skeleton()
        model.initialise(generator, norm_scale(self.target.head))
        return model

    def served_vocabulary(self, model: BlockDraft) -> DraftVocabulary:
        """What the draft can propose: the tokens that it brings, or all of the target's."""
        return self.whole_vocabulary if self.config.to_dict().get("draft_vocab_size") is None else model.kept()

    # --- training

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """Values alive when the backward pass of a micro-batch begins: documents of so many blocks each, and so many tokens in all."""
        rows, head = documents * blocks * self.rows, self.target.head
        in_loss = loss_values(rows, head.shape[1], len(head), laws=1 + self.options.compares, factor=self.factor_width)
        return kept_values(self.config, rows, tokens, compiled) + in_loss

    def loss(self, model: Model, batch: Batch, seed: int, progress: float = 0.0) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Returns (loss sum [], weight sum [], metric -> (sum, count)); sums travel, the trainer divides once per step."""
        layout, device = sample_anchors(batch, self.options.num_anchors, self.block_size, seed), batch.context.device
        slots, rows = block_labels(batch, layout), self.vocabulary.draw(seeded(seed, batch.epoch, *batch.indices))
        teacher = taught_by(self.target, batch.context, rows_before(layout, slots)) if self.taught else None
        lesson = Lesson(slots.to(device), send(layout.valid, device), rows, teacher, progress)
        finish = partial(self._finish, lesson, self._before(layout, device))
        return model(*self.inputs(batch.ids, batch.context, layout), finish)

    def _finish(self, lesson: Lesson, last: Tensor, draft: BlockDraft, states: Tensor, c: Tensor):
        anchors = lesson.slots.labels[:, :, 0].flatten()
        return self.score(draft, blocks_of(anchors, last, self.proposing, draft, states, c), lesson)

    def score(self, draft: BlockDraft, blocks: Blocks, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """What `loss` returns, from the states. It runs inside of the draft's forward, where the head's parameters are whole."""
        found = self.head_losses(blocks, lesson)
        weights = self.slot_weights(lesson, found)
        return (found.loss * weights).sum(), weights.sum(), self.slot_metrics(lesson, found)

    def head_losses(self, blocks: Blocks, lesson: Lesson, correction: Correction | None = None) -> HeadLosses:
        """Of the slots that count, as `draft.loss` mixes them."""
        rows, label = lesson.vocabulary, lesson.vocabulary.index[lesson.labels]
        states = lesson.pick(blocks.states)
        teacher = lesson.teacher if self.options.compares else None
        return head_losses(
            states, rows.head, label, self.options.loss, teacher=teacher, bias=rows.bias, correction=correction, best=self.candidates
        )

    def slot_weights(self, lesson: Lesson, found: HeadLosses) -> Tensor:
        """[r], by `draft.loss_decay_gamma`. A slot's chance is that of its label, or of acceptance where labels are not learned from."""
        if self.options.loss_decay_gamma is not None:
            return decay_weights(lesson.slots, self.options.loss_decay_gamma)
        return dpace_weights(lesson.slots, torch.exp(-found.cross_entropy) if "ce" in self.options.loss else found.overlap)

    @staticmethod
    def slot_metrics(lesson: Lesson, found: HeadLosses) -> dict[str, tuple[Tensor, Tensor]]:
        right = lesson.vocabulary.ids[found.predictions] == lesson.labels
        return slot_metrics(lesson.slots, lesson.valid, found.loss.detach(), right)

    def inputs(self, ids: Tensor, context: Tensor, layout: BlockLayout) -> tuple:
        """Arguments of the draft for the blocks of a layout, which lies where the ids do: on the host, or beside the context.

        context [T, K*H_t], and the last layer's states behind, if captured.
        """
        layout = replace(layout, block_size=self.rows)
        tokens = torch.where(layout.valid, ids[layout.starts[:, None] + layout.anchors], self.mask_token_id)  # [N, A]
        rows = torch.full((*tokens.shape, self.rows), self.mask_token_id, device=context.device)
        rows[:, :, 0] = send(tokens, context.device)
        embedded = torch.nn.functional.embedding(rows.flatten(), self.target.embedding)
        layout = layout.to(context.device)
        features = context[:, : -self.target.head.shape[1]] if self.taught else context
        return embedded, features, layout.positions, attention(layout, self.sights)

    @staticmethod
    def _before(layout: BlockLayout, device: torch.device) -> Tensor:
        """[n] the row of the packed context that precedes each anchor; -1 for a document's first token."""
        row = layout.starts[:, None] + layout.anchors - 1
        return send(row.where(layout.anchors > 0, -1).flatten(), device)

    # --- inference

    def walk(self, model: BlockDraft, blocks: Blocks, vocabulary: DraftVocabulary) -> Walk:
        """The blocks' logits, slot after slot. vocabulary: the served one, made once: that checks its maps and lays out its head."""
        return Walk(blocks.states, vocabulary.project)

    def drafter(self, model: BlockDraft) -> BlockDrafter:
        return BlockDrafter(model, self.target, self.served_vocabulary(model), self.proposing, self.walk)

    def propose(self, model: Model, features: Features, anchors: Tensor) -> Tensor:
        """What the draft would propose after each anchor of a document, all in parallel: [n] -> tokens [n, S]."""
        vocabulary, size = self.served_vocabulary(model), len(self.target.embedding)
        parts = self._blocks(model, features, anchors)
        return torch.cat([walk.draft(self.walk(model, b, vocabulary), b.anchors, vocabulary, GREEDY, size)[0] for b, _ in parts])

    def matches(self, model: Model, features: Features, anchors: Tensor) -> Tensor:
        """How many drafts after each anchor of a document are the text's own tokens, up to the first that is not: [n] -> [n]."""
        vocabulary, parts = self.served_vocabulary(model), self._blocks(model, features, anchors)
        return torch.cat([walk.matches(self.walk(model, b, vocabulary), b.anchors, text, vocabulary) for b, text in parts])

    def text_log_probabilities(self, model: Model, features: Features, anchors: Tensor, temperature: float) -> Tensor:
        """log q_k(x_{a+k}) of the text's own tokens after each anchor a, at a temperature: [n] -> float32 [n, S]."""
        vocabulary, parts = self.served_vocabulary(model), self._blocks(model, features, anchors)
        log_q = [walk.log_probabilities(self.walk(model, b, vocabulary), b.anchors, text, vocabulary, temperature) for b, text in parts]
        return torch.cat(log_q)

    def _blocks(self, model: Model, features: Features, anchors: Tensor) -> Iterator[tuple[Blocks, Tensor]]:
        """The blocks after some anchors of a document at a time, and the text there [n', S]."""
        ids = features.prompt.ids
        for part in anchors.split(PROPOSAL_BLOCKS):
            layout = BlockLayout(part[None], torch.ones_like(part[None], dtype=torch.bool), (len(ids),), self.block_size)
            finish = partial(blocks_of, ids[part], part - 1, self.proposing)
            yield model(*self.inputs(ids, features.context, layout), finish), following_tokens(ids, part, self.block_size)
