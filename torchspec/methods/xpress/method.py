"""XPress: DFlash's backbone and a head that refines a whole block in a few passes at once (docs/xpress.md)."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, Qwen3Config

from torchspec.methods.block import format
from torchspec.methods.block.blocks import Blocks, Lesson
from torchspec.methods.block.method import BlockMethod
from torchspec.methods.vocabulary import DraftVocabulary
from torchspec.methods.xpress.config import XPressConfig
from torchspec.methods.xpress.model import XPressDraft
from torchspec.methods.xpress.walk import XPressWalk
from torchspec.nn.losses import Correction, HeadLosses

# key -> what vLLM takes a missing one for
DEFAULTS = {"xpress_rank": 256, "xpress_mlp_hidden": 512, "xpress_num_passes": 6, "xpress_topc": 512}
MIX = "xpress_head.mix.L"
OF_SPECULATORS = {
    "refiner_head.token_embed.": "xpress_head.w1.", "refiner_head.mix_l": MIX, "refiner_head.mlp_gate.": "xpress_head.mlp.gate_proj.",
    "refiner_head.mlp_up.": "xpress_head.mlp.up_proj.", "refiner_head.mlp_down.": "xpress_head.mlp.down_proj.",
    "refiner_head.readout.": "xpress_head.w2.", "refiner_head.": "xpress_head.",
}  # fmt: skip


class XPress(BlockMethod):
    Options = XPressConfig
    Draft = XPressDraft
    architecture = "Qwen3XPressModel"
    head = ("xpress_head.*",)
    meaning = format.MEANING | {"block_size": (MIX,)}

    # --- format

    @staticmethod
    def add_settings(config: Qwen3Config, options: XPressConfig) -> None:
        config.dflash_config |= {key: getattr(options, key) for key in DEFAULTS}

    @staticmethod
    def repeated(values: dict) -> dict:
        """vLLM looks at the top alone."""
        said = {key: values["dflash_config"][key] for key in DEFAULTS}
        return {**said, "xpress_block_size": values["block_size"], "sample_from_anchor": False}

    @staticmethod
    def read_settings(_folder: Path, values: dict) -> dict:
        said = {**DEFAULTS, **(values.get("dflash_config") or {}), **values}
        return {key: said[key] for key in (*DEFAULTS, "sample_from_anchor") if key in said}

    @staticmethod
    def fitted(tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
        """A shorter block is mixed by the first rows' weights, as its rows are the first ones."""
        named = {}
        for name, value in tensors.items():
            theirs = next((prefix for prefix in OF_SPECULATORS if name.startswith(prefix)), "")
            named[OF_SPECULATORS.get(theirs, "") + name.removeprefix(theirs)] = value
        if MIX in named:
            named[MIX] = named[MIX][:, : config.block_size, : config.block_size].contiguous()
        return named

    @staticmethod
    def uncomputed(values: dict) -> dict[str, bool]:
        nested = values["dflash_config"]
        return format.uncomputed(values) | {
            f"{nested['xpress_num_passes']} passes of XPress": nested["xpress_num_passes"] < 1,
            "an XPress head with a vocabulary of its own": values.get("draft_vocab_size") not in (None, values["vocab_size"]),
        }

    @staticmethod
    def sglang_traps(_config: PreTrainedConfig, _target_type: str | None) -> list[str]:
        return ["SGLang has no XPress"]

    @staticmethod
    def llamacpp_traps(_config: PreTrainedConfig, _target_type: str | None) -> list[str]:
        return ["llama.cpp has no XPress"]

    # --- training

    @property
    def factor_width(self) -> int:
        return self.config.dflash_config["xpress_rank"]

    def kept_values(self, documents: int, blocks: int, tokens: int, compiled: bool) -> int:
        """Each law's rows of states and factors; for those with a head what goes into it, its MLP, and what is mixed and added."""
        said, rows = self.config.dflash_config, documents * blocks * self.rows
        corrected = 1 + (self.options.consistency_rounds if self.options.consistency_loss else 0)
        head = rows * corrected * (10 * said["xpress_rank"] + 4 * said["xpress_mlp_hidden"])
        laws = rows * (1 + corrected) * (self.config.hidden_size + said["xpress_rank"])
        return super().kept_values(documents, blocks, tokens, compiled) + head + laws

    def score(self, draft: XPressDraft, blocks: Blocks, lesson: Lesson) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Each slot after the text's tokens, after the draft's own (no gradient between rounds), and of the backbone alone."""
        options, hidden, anchors = self.options, draft.xpress_head.hidden(blocks.rows), blocks.anchors

        def after(before: Tensor) -> HeadLosses:
            factors = lesson.pick(draft.xpress_head.factors(hidden, anchors, before))
            return self.head_losses(blocks, lesson, Correction(factors, lesson.vocabulary.of(draft.xpress_head.w2.weight)))

        taught, base = after(lesson.before), self.head_losses(blocks, lesson)
        losses, said = taught.loss + options.base_loss * base.loss, base.predictions
        for _ in range(options.consistency_rounds if options.consistency_loss else 0):
            found = after(self._own(lesson, anchors, said))
            losses, said = losses + options.consistency_loss / options.consistency_rounds * found.loss, found.predictions
        weights = self.slot_weights(lesson, taught)
        return (losses * weights).sum(), weights.sum(), self.slot_metrics(lesson, taught)

    @staticmethod
    def _own(lesson: Lesson, anchors: Tensor, said: Tensor) -> Tensor:
        """What the draft says at the slots that count [r] -> the tokens before all slots [n, B-1]. Behind the last slot that counts
        stands any token: no slot before it sees that.
        """
        tokens = lesson.slots.spread(lesson.vocabulary.ids[said]).flatten(0, 1)
        return torch.cat((anchors[:, None], tokens[:, 1:-1]), dim=1)

    # --- inference

    def walk(self, model: XPressDraft, blocks: Blocks, vocabulary: DraftVocabulary) -> XPressWalk:
        said = self.config.dflash_config
        return XPressWalk(model.xpress_head, blocks.rows, blocks.anchors, vocabulary, said["xpress_num_passes"], said["xpress_topc"])
