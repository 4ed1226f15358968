"""LiLiCorr (arXiv 2608.20530): the backbone's best tokens of every slot, and a correlator that walks through them (docs/lilicorr.md)."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from torchspec.methods.block.blocks import Blocks, Lesson
from torchspec.methods.block.format import MEANING
from torchspec.methods.block.method import BlockMethod
from torchspec.methods.blocks import slot_metrics
from torchspec.methods.lilicorr import format
from torchspec.methods.lilicorr.config import LiLiCorrConfig
from torchspec.methods.lilicorr.lesson import path_losses, text_path
from torchspec.methods.lilicorr.memory import lattice_values
from torchspec.methods.lilicorr.model import LiLiCorrDraft
from torchspec.methods.lilicorr.walk import LatticeWalk
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.candidates import Candidates, top_candidates
from torchspec.target.frozen import FrozenTarget


class LiLiCorr(BlockMethod):
    Options, Draft = LiLiCorrConfig, LiLiCorrDraft
    architecture = "LiLiCorrDraftModel"
    meaning, head = {**MEANING, "dflash_config.lilicorr_num_heads": ("lilicorr.layers.*.attn.*",)}, ("lilicorr.*",)
    add_settings = staticmethod(format.add_settings)
    uncomputed = staticmethod(format.uncomputed)
    fitted = staticmethod(format.fitted)
    llamacpp_traps = staticmethod(format.llamacpp_traps)

    @classmethod
    def check_serves(cls, config: PreTrainedConfig, target: FrozenTarget) -> None:
        super().check_serves(config, target)
        format.check_settings(config)

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        lattices = documents * blocks
        return super().kept_values(documents, blocks, tokens, compiled) + lattice_values(self.config, lattices, len(self.target.head))

    def score(self, draft: LiLiCorrDraft, blocks: Blocks, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """A slot's loss is the backbone's, and the lattice's where the text's tokens up to there are candidates; both weigh the same."""
        rows, options = lesson.vocabulary, self.options
        unary = self.head_losses(blocks, lesson)
        weights = self.slot_weights(lesson, unary)
        candidates = top_candidates(blocks.states.flatten(0, 1), rows.head, draft.lilicorr.count, bias=rows.bias)
        places = candidates.tokens.view(*blocks.states.shape[:2], -1)
        scores = self._scores(draft, blocks, rows.ids[places], candidates)
        path = text_path(rows.ids[places], lesson.slots.labels[:, :, 1:].flatten(0, 1), scores)
        target = lesson.teacher.logits(rows.head, lesson.pick(places)) if options.compares_candidates else None
        lattice = path_losses(lesson.pick(path.rows), lesson.pick(path.gold), options.lilicorr_loss, target)
        loss = unary.loss + lattice.where(lesson.pick(path.reached), 0.0)
        metrics = slot_metrics(lesson.slots, lesson.valid, loss.detach(), lesson.pick(path.right))
        covered = slot_metrics(lesson.slots, lesson.valid, loss.detach(), lesson.pick(path.held))
        return (
            (loss * weights).sum(),
            weights.sum(),
            {**metrics, "slot_covered": covered["slot_accuracy"], "covered_tau": covered["block_tau"]},
        )

    @torch.no_grad()
    def walk(self, model: LiLiCorrDraft, blocks: Blocks, vocabulary: DraftVocabulary) -> LatticeWalk:
        rows = blocks.states.flatten(0, 1)
        candidates = top_candidates(rows, vocabulary.head, model.lilicorr.count, project=vocabulary.project)
        places = candidates.tokens.view(*blocks.states.shape[:2], -1)
        return LatticeWalk(places, self._scores(model, blocks, vocabulary.ids[places], candidates), len(vocabulary.ids))

    def _scores(self, draft: LiLiCorrDraft, blocks: Blocks, tokens: Tensor, candidates: Candidates) -> Tensor:
        """tokens [n, S, K] -> [n, S, K, K]."""
        embedded = torch.nn.functional.embedding(tokens, self.target.embedding)
        return draft.lilicorr(embedded, candidates.log_probabilities.view(tokens.shape), blocks.states, blocks.context)
