"""Domino: DFlash's backbone and a GRU over the block's tokens that corrects each slot's logits (docs/domino.md)."""

from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.methods.block import format
from torchspec.methods.block.blocks import Blocks, Lesson
from torchspec.methods.block.method import BlockMethod
from torchspec.methods.domino.config import DominoConfig
from torchspec.methods.domino.model import DominoDraft
from torchspec.methods.domino.walk import DominoWalk
from torchspec.methods.format import check_keys
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.nn.losses import Correction

PROJECTOR = "domino"
KEYS = ("emb_dim", "gru_hidden_dim", "pure_draft_prefix_len", "shift_label")
LEFT_OUT_BY_ITS_AUTHORS = {"pure_draft_prefix_len": 0, "shift_label": False}  # SpecForge reads a config.json without them so


class Domino(BlockMethod):
    Options = DominoConfig
    Draft = DominoDraft
    architecture = "DFlashDraftModel"
    head = ("prefix_gru.*", "embed_proj.*")

    @property
    def factor_width(self) -> int:
        return self.config.dflash_config["emb_dim"]

    # --- format

    @staticmethod
    def add_settings(config: Qwen3Config, options: DominoConfig) -> None:
        config.dflash_config |= {"projector_type": PROJECTOR, **{key: getattr(options, key) for key in KEYS}}

    @staticmethod
    def read_settings(_folder: Path, values: dict) -> dict:
        """Keys are looked for inside of `dflash_config`, then at the top, as SGLang does."""
        said = {**LEFT_OUT_BY_ITS_AUTHORS, **values, **(values.get("dflash_config") or {})}
        said = {key: said[key] for key in KEYS if said.get(key) is not None}
        check_keys(said, KEYS)
        return {"projector_type": PROJECTOR, **said}

    @staticmethod
    def fitted(tensors: dict[str, Tensor], _config: PreTrainedConfig) -> dict[str, Tensor]:
        """SpecForge's older checkpoints have a prefix before the head's names."""
        return {name.removeprefix("logit_head."): value for name, value in tensors.items()}

    @staticmethod
    def proposing_rows(nested: dict) -> slice:
        """Shifted, the last row proposes nothing: SGLang takes B-1 proposals from either layout, and B rows are in the attention."""
        return slice(None, -1) if nested["shift_label"] else slice(1, None)

    @staticmethod
    def uncomputed(values: dict) -> dict[str, bool]:
        nested = values["dflash_config"]
        return {
            "a Domino head with sample_from_anchor": bool(nested.get("sample_from_anchor")),
            "a Domino head with a vocabulary of its own": values.get("draft_vocab_size") not in (None, values["vocab_size"]),
        }

    @staticmethod
    def vllm_traps(_config: PreTrainedConfig) -> list[str]:
        return ["vLLM has no Domino and would load the backbone alone"]

    @staticmethod
    def llamacpp_traps(_config: PreTrainedConfig, _target_type: str | None) -> list[str]:
        return ["llama.cpp has no Domino and would load the backbone alone"]

    @staticmethod
    def sglang_traps(config: PreTrainedConfig, target_type: str | None) -> list[str]:
        pure = config.dflash_config["pure_draft_prefix_len"]
        refused = [] if pure == 1 else [f"SGLang refuses pure_draft_prefix_len={pure}, it serves 1"]
        return format.sglang_traps(config, target_type) + refused

    # --- training

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """A token's embedding, five values of the GRU per channel of its state, both states; then the joined input and the rank."""
        slots, state, rank = documents * blocks * self.drafts, self.config.dflash_config["gru_hidden_dim"], self.factor_width
        head = slots * (2 * self.config.hidden_size + 7 * state + 2 * rank)
        return super().kept_values(documents, blocks, tokens, compiled) + head

    def score(self, draft: DominoDraft, blocks: Blocks, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """(1 - lambda) x the loss of what is proposed + lambda x that of the backbone alone, which is to stand without the head first."""
        found = self.head_losses(blocks, lesson, self.correction(draft, blocks, lesson))
        weights, base_weight = self.slot_weights(lesson, found), self.base_weight(lesson.progress)
        losses = found.loss if base_weight == 0 else (1 - base_weight) * found.loss + base_weight * self.head_losses(blocks, lesson).loss
        return (losses * weights).sum(), weights.sum(), self.slot_metrics(lesson, found)

    def base_weight(self, progress: float) -> float:
        """lambda: 1 at the first step, 0 from `base_loss_decay_ratio` of the training on."""
        ratio = self.options.base_loss_decay_ratio
        return 0.0 if progress >= ratio else 1 - progress / ratio

    def correction(self, draft: DominoDraft, blocks: Blocks, lesson: Lesson) -> Correction:
        """Of the slots that count, each fed with the text's tokens."""
        prefixes = draft.prefixes(nn.functional.embedding(lesson.before, self.target.embedding))
        factor = draft.factor(blocks.states, prefixes)
        factor[:, : self.pure] = 0
        return Correction(lesson.pick(factor), lesson.vocabulary.of(draft.embed_proj[2].weight))

    # --- inference

    def walk(self, model: DominoDraft, blocks: Blocks, vocabulary: DraftVocabulary) -> DominoWalk:
        return DominoWalk(model, blocks.states, vocabulary, self.target.embedding, self.pure)

    @property
    def pure(self) -> int:
        return self.config.dflash_config["pure_draft_prefix_len"]
