"""EAGLE-3 as the trainer and the evaluator see it: chains, teacher-forced steps, divergence from the target, proposals, drafter.

Alignment of one chain, 3 steps (B = 4), anchor 10. f_t: captured features of x_t, s_i: state after step i.

      step i       0             1             2
      slot k       1             2             3
      input        x_10, f_9     x_11, s_0     x_12, s_1      training feeds the text, serving the draft's own choice
      position     9             10            11
      target       p(.|..x_10)   p(.|..x_11)   p(.|..x_12)    from the last layer's state of x_10, x_11, x_12
      label        x_11          x_12          x_13           what accuracy is counted against; weight decay^i, or D-PACE
      sees         rows 0 .. 9, and the chain's own earlier steps; row t joins f_t and x_{t+1}

Row 9 is step 0 itself. Rows of the context are "strictly before the anchor", as in DFlash, and a step is a block with one row
that asks: both methods share one attention.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerBase

from torchspec.acceptance.sampling import GREEDY
from torchspec.data.dataset import PromptDataset
from torchspec.methods.blocks import block_labels, rows_before, sample_anchors, slot_metrics, taught_by
from torchspec.methods.eagle3 import format
from torchspec.methods.eagle3.base import EagleMethod, Model
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.eagle3.generate import Choices, Eagle3Drafter
from torchspec.methods.eagle3.memory import kept_values
from torchspec.methods.eagle3.model import Attend, Eagle3Draft, Follow, KeyValue
from torchspec.methods.weights import dpace_weights
from torchspec.nn.attention import BlockLayout, flex, flex_block_mask
from torchspec.nn.losses import head_losses, loss_values
from torchspec.nn.send import send
from torchspec.nn.tiled_attention import tiled_attention
from torchspec.records import Batch, Features
from torchspec.target.frozen import FrozenTarget


class Eagle3(EagleMethod):
    Options, Draft = Eagle3Config, Eagle3Draft
    name, length, meaning = "EAGLE-3", "ttt_length", format.MEANING
    captured, check_serves, check_folder = (staticmethod(f) for f in (format.layer_ids, format.check_serves, format.check_folder))
    sglang_traps, llamacpp_traps = staticmethod(format.sglang_traps), staticmethod(format.llamacpp_traps)
    gguf_facts = staticmethod(format.gguf_facts)

    @staticmethod
    def new_config(
        options: Eagle3Config, target: FrozenTarget, _tokenizer: PreTrainedTokenizerBase, _dataset: PromptDataset
    ) -> LlamaConfig:
        return format.draft_config(options, target)

    def drafter(self, model: Eagle3Draft) -> Eagle3Drafter:
        return Eagle3Drafter(model, self.target, self.served_vocabulary(model), self.block_size)

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """Values alive when the backward pass of a micro-batch begins: documents of so many chains each, and so many tokens in all."""
        chains, steps, head = documents * blocks, self.block_size - 1, self.vocabulary.head
        kept = kept_values(self.config, steps, chains, tokens, compiled)
        return kept + loss_values(chains * steps, head.shape[1], len(head), laws=2)

    def loss(
        self, model: Model, batch: Batch, seed: int, _progress: float = 0.0
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Returns (loss sum [], weight sum [], metric -> (sum, count)); sums travel, the trainer divides once per step."""
        layout, device = chains(sample_anchors(batch, self.options.num_anchors, self.block_size, seed)), batch.context.device
        here = block_labels(batch, layout)
        slots = here.to(device)
        hidden = self.hidden(model, batch.ids, batch.context, layout, lambda step, _: self.embed(slots.labels[:, :, step].flatten()))
        step, chain = slots.rows % self.block_size - 1, slots.rows // self.block_size  # [r] slot k belongs to step k - 1
        scored = hidden.flatten(0, 1).index_select(0, step * layout.anchors.numel() + chain)
        teacher = taught_by(self.target, batch.context, rows_before(layout, here))
        found = head_losses(scored, self.vocabulary.head, None, {self.options.loss: 1.0}, teacher=teacher)
        decay, label = self.options.loss_step_decay, slots.pick(slots.labels.flatten())
        weights = dpace_weights(slots, found.overlap) if decay is None else decay ** step.float()
        metrics = slot_metrics(slots, send(layout.valid, device), found.loss.detach(), self.vocabulary.ids[found.predictions] == label)
        if self.config.draft_vocab_size is not None:
            metrics["vocabulary_coverage"] = (self.vocabulary.holds(label).sum(), slots.mask.sum())
        return (found.loss * weights).sum(), weights.sum(), metrics

    def hidden(self, model: Model, ids: Tensor, context: Tensor, layout: BlockLayout, follow: Follow) -> Tensor:
        """The draft's normed outputs for all steps of all chains of a layout, [B-1, N*A, H]."""
        features, device = context[:, : -self.target.head.shape[1]], context.device
        starts = send((layout.starts[:, None] + layout.anchors - 1).flatten(), device)
        after = send(ids.roll(-1), device)  # a document's last row holds a token of the next one: no chain sees that row
        layout = layout.to(device)
        steps = self.block_size - 1
        return model(self.embed(after), features, layout.positions[0], starts, steps, follow, attention(layout, steps))

    def propose(self, model: Eagle3Draft, features: Features, anchors: Tensor) -> Tensor:
        """What the draft would propose after each anchor of a document, all in parallel: [n] -> tokens [n, B-1]."""
        vocabulary, proposals = self.served_vocabulary(model), []
        for layout in self.layouts(features, anchors):
            choices = Choices(vocabulary, self.target.embedding, GREEDY)
            hidden = self.hidden(model, features.prompt.ids, features.context, layout, choices.follow)
            choices.choose(hidden[-1])
            proposals.append(torch.stack(choices.tokens, dim=1))
        return torch.cat(proposals)

    def states(self, model: Eagle3Draft, features: Features, layout: BlockLayout, after: Tensor) -> Tensor:
        """Each step fed with the text's token."""
        hidden = self.hidden(model, features.prompt.ids, features.context, layout, lambda step, _: self.embed(after[:, step - 1]))
        return hidden.transpose(0, 1)


def chains(layout: BlockLayout) -> BlockLayout:
    """Without those at a document's first token: no row precedes it. Invalid chains stand at 1, where one row is visible."""
    return BlockLayout(layout.anchors.clamp(min=1), layout.valid & (layout.anchors > 0), layout.lengths, layout.block_size)


def attention(layout: BlockLayout, steps: int) -> Attend:
    """FlexAttention where it has a backward pass, tiles of blocks elsewhere. Rows of chains are ordered [N, A]."""
    # made here and not when a step asks: that would be inside of a compiled layer
    masks = [flex_block_mask(layout, 1, own) for own in range(steps)] if layout.anchors.is_cuda else []

    def attend(q: Tensor, past: tuple[KeyValue, ...]) -> Tensor:
        (k, v), *own = past
        k_own, v_own = (torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*own, strict=True)) if own else (k[:0], v[:0])
        return flex(q, k, v, k_own, v_own, masks[len(own)]) if masks else tiled_attention(q, k, v, k_own, v_own, layout)

    return attend
