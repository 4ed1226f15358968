"""P-EAGLE as the trainer and the evaluator see it: chains of several lengths, divergence from the target, proposals, drafter.

Alignment of one chain of 3 depths (B = 4), anchor 10. f_t: captured features of x_t, m: mask_hidden.

      depth d      0             1             2
      slot k       1             2             3
      input        x_10, f_9     mask, m       mask, m        the same in training and serving: no row waits for another's token
      position     9             10            11
      target       p(.|..x_10)   p(.|..x_11)   p(.|..x_12)    from the last layer's state of x_10, x_11, x_12
      label        x_11          x_12          x_13           what accuracy is counted against; weight decay^d
      sees         rows 0 .. 9, and the chain's own rows up to itself; row t joins f_t and x_{t+1}

The row of depth 0 is row 9 of the context itself: it sees rows 0 .. 9 whatever chain begins there. Mask rows are a block that sees the
rows strictly before its anchor, as in EAGLE-3 and DFlash, and is causal in itself.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedTokenizerBase

from torchspec.acceptance.sampling import GREEDY
from torchspec.chat.stops import stop_ids
from torchspec.data.dataset import PromptDataset
from torchspec.methods import walk
from torchspec.methods.blocks import Slots, block_labels, rows_before, slot_metrics, taught_by
from torchspec.methods.eagle3.base import EagleMethod, Model
from torchspec.methods.mask_token import choose_mask_token
from torchspec.methods.peagle import format
from torchspec.methods.peagle.chains import draw_chains, shares
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.methods.peagle.generate import PeagleDrafter
from torchspec.methods.peagle.memory import kept_values
from torchspec.methods.peagle.model import PeagleDraft
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.attention import BlockLayout
from torchspec.nn.chain_attention import chain_attention
from torchspec.nn.losses import head_losses, loss_values
from torchspec.nn.send import send
from torchspec.records import Batch, Features
from torchspec.target.frozen import FrozenTarget


class Peagle(EagleMethod):
    Options, Draft = PeagleConfig, PeagleDraft
    name, length, meaning = "P-EAGLE", "num_depths", format.MEANING
    captured, check_serves, check_folder = (staticmethod(f) for f in (format.layer_ids, format.check_serves, format.check_folder))
    sglang_traps, llamacpp_traps = staticmethod(format.sglang_traps), staticmethod(format.llamacpp_traps)
    gguf_facts = staticmethod(format.gguf_facts)

    def __init__(self, config: LlamaConfig, target: FrozenTarget, options: PeagleConfig, vocabulary: DraftVocabulary | None):
        super().__init__(config, target, options, vocabulary)
        self.mask_token_id = config.mask_token_id

    @staticmethod
    def new_config(options: PeagleConfig, target: FrozenTarget, tokenizer: PreTrainedTokenizerBase, dataset: PromptDataset) -> LlamaConfig:
        counts = dataset.token_counts(len(target.embedding))
        mask_token_id = choose_mask_token(tokenizer, counts, options.mask_token_id, stop_ids(target.folder, tokenizer))
        return format.draft_config(options, target, mask_token_id)

    def drafter(self, model: PeagleDraft) -> PeagleDrafter:
        return PeagleDrafter(model, self.target, self.served_vocabulary(model), self.block_size, self.mask_token_id)

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """Values alive when the backward pass of a micro-batch begins: documents of so many chains each, and so many tokens in all."""
        head, chains = self.vocabulary.head, documents * blocks
        scored = round(chains * sum(shares(self.options)))  # the first row of each is one of the context
        return kept_values(self.config, tokens + scored - chains, scored, compiled) + loss_values(scored, head.shape[1], len(head), laws=2)

    def loss(
        self, model: Model, batch: Batch, seed: int, _progress: float = 0.0
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Returns (loss sum [], weight sum [], metric -> (sum, count)); sums travel, the trainer divides once per step."""
        groups, device = draw_chains(batch, self.options, seed), batch.context.device
        scored = Scored.of(batch, groups)
        hidden = self.hidden(model, batch.ids, batch.context, groups)
        teacher = taught_by(self.target, batch.context, scored.states)
        states = hidden.index_select(0, send(scored.places, device))
        found = head_losses(states, self.vocabulary.head, None, {self.options.loss: 1.0}, teacher=teacher)
        weights, label = self.options.loss_step_decay ** send(scored.depths, device).float(), send(scored.labels, device)
        right = self.vocabulary.ids[found.predictions] == label
        metrics = self._metrics(scored, groups, found.loss.detach(), right)
        if self.config.draft_vocab_size is not None:
            metrics["vocabulary_coverage"] = (self.vocabulary.holds(label).sum(), metrics["slot_loss"][1].sum())
        return (found.loss * weights).sum(), weights.sum(), metrics

    def _metrics(self, scored: "Scored", groups: tuple[BlockLayout, ...], losses: Tensor, right: Tensor) -> dict:
        """Per slot over the chains of all lengths; the acceptance length over whole chains alone: the others end before their drafts do."""
        sizes, parts = [len(slots.rows) for slots in scored.slots], []
        for slots, layout, *values in zip(scored.slots, groups, losses.split(sizes), right.split(sizes), strict=True):
            parts.append(slot_metrics(slots.to(losses.device), send(layout.valid, losses.device), *values))
        totals = {"block_tau": parts[-1]["block_tau"]}
        for name in ("slot_loss", "slot_accuracy"):
            filled = [[nn.functional.pad(x, (0, self.block_size - 1 - len(x))) for x in part[name]] for part in parts]
            totals[name] = tuple(torch.stack(each).sum(0) for each in zip(*filled, strict=True))
        return totals

    def hidden(self, model: Model, ids: Tensor, context: Tensor, groups: tuple[BlockLayout, ...]) -> Tensor:
        """The draft's normed outputs for all depths of all chains, a group behind the other: [sum of N*A*(B-1), H]."""
        features, device, total = context[:, : -self.target.head.shape[1]], context.device, len(context)
        after = send(ids.roll(-1), device)  # a document's last row holds a token of the next one: no chain sees that row
        groups = tuple(layout.to(device) for layout in groups)
        masks = tuple(replace(layout, block_size=layout.block_size - 2) for layout in groups)
        asking, first = [], total
        for layout, behind in zip(groups, masks, strict=True):
            starts = (layout.starts[:, None] + layout.anchors - 1).flatten()[:, None]
            rows = torch.arange(first, first + len(starts) * behind.block_size, device=device).view(len(starts), -1)
            asking.append(torch.cat((starts, rows), dim=1).flatten())
            first += rows.numel()
        positions = groups[0].positions[0], torch.cat([layout.positions[1] for layout in masks])
        attend = chain_attention(groups[0].lengths, tuple(layout for layout in masks if layout.block_size), device)
        mask = self.target.embedding[self.mask_token_id]
        return model(self.embed(after), mask, features, positions, torch.cat(asking), lambda _layer: attend)

    def propose(self, model: PeagleDraft, features: Features, anchors: Tensor) -> Tensor:
        """What the draft would propose after each anchor of a document, all in parallel: [n] -> tokens [n, B-1]."""
        vocabulary, size = self.served_vocabulary(model), len(self.target.embedding)
        walks = self.walks(model, vocabulary, features, anchors)
        return torch.cat([walk.draft(steps, before, vocabulary, GREEDY, size)[0] for steps, before, _ in walks])

    def states(self, model: PeagleDraft, features: Features, layout: BlockLayout, _after: Tensor) -> Tensor:
        """No depth looks at another's token."""
        hidden = self.hidden(model, features.prompt.ids, features.context, (layout,))
        return hidden.view(layout.anchors.numel(), self.block_size - 1, -1)


@dataclass(frozen=True)
class Scored:
    """The rows of a loss, a group of chains behind the other; on the host."""

    slots: tuple[Slots, ...]  # of each group
    places: Tensor  # [r] among the outputs of all depths of all chains
    states: Tensor  # [r] context rows whose last states give the targets
    labels: Tensor  # [r]
    depths: Tensor  # [r]

    @classmethod
    def of(cls, batch: Batch, groups: tuple[BlockLayout, ...]) -> "Scored":
        slots, rows, first = tuple(block_labels(batch, layout) for layout in groups), [], 0
        for here, layout in zip(slots, groups, strict=True):
            chain, depth = here.rows // layout.block_size, here.rows % layout.block_size - 1  # slot k belongs to depth k - 1
            places = first + chain * (layout.block_size - 1) + depth
            rows.append((places, rows_before(layout, here), here.pick(here.labels.flatten()), depth))
            first += layout.anchors.numel() * (layout.block_size - 1)
        return cls(slots, *map(torch.cat, zip(*rows, strict=True)))
