"""DFlash as the trainer and the evaluator see it: anchors, loss, proposals, drafter.

Alignment of one block, B = 4, anchor 10:

      slot k       0      1      2      3
      input        x_10   mask   mask   mask
      position     10     11     12     13
      label        -      x_11   x_12   x_13      weight 0 for slot 0, weights.py for the others
      sees         features of x_0 .. x_9, and all slots of its own block; in a sliding layer those of the last `sliding_window`
                   positions, and no later slot
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, Qwen3Config

from torchspec.acceptance.sampling import GREEDY
from torchspec.chat.stops import stop_ids
from torchspec.data.dataset import PromptDataset
from torchspec.methods.blocks import block_labels, following_tokens, sample_anchors, seeded, slot_metrics
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.dflash.format import (
    MEANING,
    check_folder,
    check_serves,
    draft_config,
    gguf_facts,
    llamacpp_traps,
    sglang_traps,
    sights,
)
from torchspec.methods.dflash.generate import DFlashDrafter
from torchspec.methods.dflash.mask_token import choose_mask_token
from torchspec.methods.dflash.memory import kept_values
from torchspec.methods.dflash.model import Attend, DFlashDraft
from torchspec.methods.dflash.weights import decay_weights, dpace_weights
from torchspec.methods.vocabulary import DraftVocabulary, whole_vocabulary
from torchspec.nn.attention import BlockLayout, Sight, flex, flex_block_mask
from torchspec.nn.losses import LossVocabulary, frozen_head_cross_entropy, loss_values
from torchspec.nn.send import send
from torchspec.nn.tiled_attention import tiled_attention
from torchspec.records import Batch, Features
from torchspec.target.frozen import FrozenTarget

Model = Callable[..., Tensor]  # the draft as the trainer wraps it: mixed precision, sharding
PROPOSAL_BLOCKS = PROPOSAL_ROWS = 256  # per forward and per product with the head, when a whole document is proposed: bounds memory


class DFlash:
    check_folder = staticmethod(check_folder)
    sglang_traps = staticmethod(sglang_traps)
    llamacpp_traps = staticmethod(llamacpp_traps)
    gguf_facts = staticmethod(gguf_facts)
    meaning = MEANING

    def __init__(self, config: Qwen3Config, target: FrozenTarget, options: DFlashConfig, counts: Tensor):
        """counts [V]: occurrences of every token in the training data."""
        self.config, self.target, self.options = config, target, options
        self.vocabulary = LossVocabulary(target.head, counts, options.loss_negatives)
        self.whole_vocabulary = whole_vocabulary(target)
        self.block_size = config.block_size
        self.mask_token_id = config.dflash_config["mask_token_id"]
        self.layer_ids, self.sights = tuple(config.dflash_config["target_layer_ids"]), sights(config)

    @classmethod
    def for_run(cls, options: DFlashConfig, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset) -> "DFlash":
        """A new draft for a target and its training data."""
        counts = dataset.token_counts(len(target.embedding))
        mask_token_id = choose_mask_token(tokenizer, counts, options.mask_token_id, stop_ids(target.folder, tokenizer))
        config = draft_config(options, target.config, tuple(target.embedding.shape), mask_token_id)
        return cls(config, target, options, counts)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, target: FrozenTarget) -> "DFlash":
        """For a draft folder, ours or another's; training options play no part at inference."""
        check_serves(config, target)
        return cls(config, target, DFlashConfig(), torch.ones(len(target.head)))

    def skeleton(self) -> DFlashDraft:
        return DFlashDraft(self.config, self.target.head.dtype)

    def build(self, generator: torch.Generator) -> DFlashDraft:
        """A fresh draft whose logits have variance 1 or less."""
        model = self.skeleton()
        row_length = torch.linalg.vector_norm(self.target.head, dim=1, dtype=torch.float32).square().mean().sqrt()
        model.initialise(generator, min(1.0, 1.0 / float(row_length)))
        return model

    def served_vocabulary(self, model: DFlashDraft) -> DraftVocabulary:
        """What the draft can propose: the tokens that it brings, or all of the target's."""
        return self.whole_vocabulary if self.config.to_dict().get("draft_vocab_size") is None else model.kept()

    def drafter(self, model: DFlashDraft) -> DFlashDrafter:
        return DFlashDrafter(model, self.target, self.served_vocabulary(model), self.block_size, self.mask_token_id)

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """Values alive when the backward pass of a micro-batch begins: documents of so many blocks each, and so many tokens in all."""
        rows, head = documents * blocks * self.block_size, self.target.head
        return kept_values(self.config, rows, tokens, compiled) + loss_values(rows, head.shape[1], len(head), laws=1)

    def loss(self, model: Model, batch: Batch, seed: int) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Returns (loss sum [], weight sum [], metric -> (sum, count)); sums travel, the trainer divides once per step."""
        layout = sample_anchors(batch, self.options.num_anchors, self.block_size, seed)
        slots = block_labels(batch, layout).to(batch.context.device)
        hidden = model(*self.inputs(batch.ids, batch.context, layout))
        rows, label = self.vocabulary.draw(seeded(seed, batch.epoch, *batch.indices)), slots.pick(slots.labels.flatten())
        losses, predictions = frozen_head_cross_entropy(slots.pick(hidden), rows.head, rows.index[label], rows.bias)
        known, gamma = losses.detach(), self.options.loss_decay_gamma
        weights = dpace_weights(slots, known) if gamma is None else decay_weights(slots, gamma)
        valid = send(layout.valid, batch.context.device)
        return (losses * weights).sum(), weights.sum(), slot_metrics(slots, valid, known, rows.ids[predictions] == label)

    def inputs(self, ids: Tensor, context: Tensor, layout: BlockLayout) -> tuple:
        """Arguments of the draft for the blocks of a layout, which lies where the ids do: on the host, or beside the context."""
        tokens = torch.where(layout.valid, ids[layout.starts[:, None] + layout.anchors], self.mask_token_id)  # [N, A]
        rows = torch.full((*tokens.shape, self.block_size), self.mask_token_id, device=context.device)
        rows[:, :, 0] = send(tokens, context.device)
        embedded = torch.nn.functional.embedding(rows.flatten(), self.target.embedding)
        layout = layout.to(context.device)
        return embedded, context, layout.positions, attention(layout, self.sights)

    def propose(self, model: Model, features: Features, anchors: Tensor) -> Tensor:
        """What the draft would propose after each anchor of a document, all in parallel: [n] -> tokens [n, B-1]."""
        vocabulary, size = self.served_vocabulary(model), len(self.target.embedding)
        slots = (rows for hidden in self._slots(model, features, anchors) for rows in hidden.split(PROPOSAL_ROWS))
        return torch.cat([vocabulary.choose(rows, GREEDY, size)[0] for rows in slots]).view(len(anchors), -1)

    def matches(self, model: Model, features: Features, anchors: Tensor) -> Tensor:
        """How many drafts after each anchor of a document are the text's own tokens, up to the first that is not: [n] -> [n]."""
        text = following_tokens(features.prompt.ids, anchors, self.block_size).split(PROPOSAL_BLOCKS)
        vocabulary, parts = self.served_vocabulary(model), zip(self._slots(model, features, anchors), text, strict=True)
        return torch.cat([vocabulary.matches(hidden.view(*tokens.shape, -1), tokens) for hidden, tokens in parts])

    def text_log_probabilities(self, model: Model, features: Features, anchors: Tensor, temperature: float) -> Tensor:
        """log q_k(x_{a+k}) of the text's own tokens after each anchor a, at a temperature: [n] -> float32 [n, B-1]."""
        tokens = following_tokens(features.prompt.ids, anchors, self.block_size).split(PROPOSAL_BLOCKS)
        vocabulary, parts = self.served_vocabulary(model), zip(self._slots(model, features, anchors), tokens, strict=True)
        log_q = [vocabulary.log_probability(hidden, ids.flatten(), temperature) for hidden, ids in parts]
        return torch.cat(log_q).view(len(anchors), -1)

    def _slots(self, model: Model, features: Features, anchors: Tensor) -> Iterator[Tensor]:
        """Normed states of the slots 1..B-1 after each anchor of a document, [n' * (B-1), H] for n' anchors at a time."""
        ids = features.prompt.ids
        for part in anchors.split(PROPOSAL_BLOCKS):
            layout = BlockLayout(part[None], torch.ones_like(part[None], dtype=torch.bool), (len(ids),), self.block_size)
            hidden = model(*self.inputs(ids, features.context, layout)).view(len(part), self.block_size, -1)
            yield hidden[:, 1:].flatten(0, 1)


def attention(layout: BlockLayout, sights: tuple[Sight, ...]) -> Callable[[int], Attend]:
    """FlexAttention where it has a backward pass, tiles of blocks elsewhere; layers of one sight share it."""
    of_sight = {sight: _attend(layout, sight) for sight in sights}
    return lambda layer: of_sight[sights[layer]]


def _attend(layout: BlockLayout, sight: Sight) -> Attend:
    if layout.anchors.is_cuda:
        mask = flex_block_mask(layout, layout.block_size, layout.block_size, sight)
        return lambda *qkv: flex(*qkv, mask)
    return lambda *qkv: tiled_attention(*qkv, layout, sight)
