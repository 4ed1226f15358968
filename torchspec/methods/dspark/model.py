"""The backbone with DSpark's two heads. Parameter names are the serving format's tensor names."""

import torch
from torch import nn
from transformers import Qwen3Config

from torchspec.methods.block.model import BlockDraft
from torchspec.methods.dspark.head import HEADS, ConfidenceHead


class DSparkDraft(BlockDraft):
    def __init__(self, config: Qwen3Config, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        head, rows = config.dflash_config, config.to_dict().get("draft_vocab_size") or config.vocab_size
        rank, width = head["markov_rank"], config.hidden_size
        self.markov_head = HEADS[head["markov_head_type"]](config.vocab_size, rows, rank, width)
        if head["enable_confidence_head"]:
            self.confidence_head = ConfidenceHead(width, rank if head["confidence_head_with_markov"] else 0)

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        """The heads start without a say: no correction, and a confidence of one half. A backbone that is gone on with starts as it was.

        Tokens start apart, Normal(0, 1): from 0.02 a row must first grow, by a learning rate per step in which its token occurs.
        """
        super().initialise(generator, norm_scale)
        nn.init.normal_(self.markov_head.markov_w1.weight, generator=generator)
        nn.init.zeros_(self.markov_head.markov_w2.weight)
        if self.config.dflash_config["enable_confidence_head"]:
            nn.init.zeros_(self.confidence_head.proj.weight)
