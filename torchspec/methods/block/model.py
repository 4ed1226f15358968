"""The backbone: D Qwen3-style layers that denoise all slots of a block at once (DFlash, arXiv 2602.06036; docs/dflash.md).

      context features [T, K*H_t] --fc--> --hidden_norm--> c [T, H] ------------------.  K and V of every layer, computed
                                                                                      |  once, never input-normed
      [anchor, mask, mask, ...] --target's embedding--> e [R, H] -> layer 0 .. D-1 ---+-> norm -> target's LM head

Single-device mathematics: which rows see which is `attend`'s business, sharding and precision the trainer's.
Parameter names are the serving format's tensor names. T context rows, R draft rows, H draft width, d head size.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from torchspec.methods.fresh import initialise
from torchspec.methods.vocabulary import VocabularyHolder
from torchspec.nn.layers import MLP, RMSNorm, RotaryEmbedding, rotate

Rope = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # q, k/v of the context, k/v of the blocks
Finish = Callable[["BlockDraft", Tensor, Tensor], Any]  # the draft, its normed states [R, H], the context rows c [T, H]


class BlockAttention(nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.head_dim, bias = config.head_dim, config.attention_bias
        query_size, kv_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def key_value(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """[rows, H] -> k, v [rows, kv_heads, d]; the same weights serve context and draft rows."""
        return rotate(self.k_norm(self.heads(self.k_proj(x))), rope), self.heads(self.v_proj(x))

    def forward(self, x: Tensor, c: Tensor, ropes: tuple[Rope, Rope], attend: Attend) -> Tensor:
        context_rope, rope = ropes
        q = rotate(self.q_norm(self.heads(self.q_proj(x))), rope)
        mixed = attend(q, *self.key_value(c, context_rope), *self.key_value(x, rope))  # [R, heads, d]
        return self.o_proj(mixed.flatten(1))


class BlockLayer(nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = BlockAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, e: Tensor, c: Tensor, ropes: tuple[Rope, Rope], attend: Attend) -> Tensor:
        """e [R, H], c [T, H] as it is for every layer: only draft rows are input-normed."""
        e = e + self.self_attn(self.input_layernorm(e), c, ropes, attend)
        return e + self.mlp(self.post_attention_layernorm(e))


class BlockDraft(VocabularyHolder):
    Layer: ClassVar[type[BlockLayer]] = BlockLayer

    def __init__(self, config: Qwen3Config, head_dtype: torch.dtype):
        super().__init__()
        self.config, values = config, config.to_dict()
        features = values.get("target_hidden_size", config.hidden_size) * len(config.dflash_config["target_layer_ids"])
        self.fc = nn.Linear(features, config.hidden_size, bias=False)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(self.Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        if values.get("draft_vocab_size") is not None:  # drafts of others; ours read the target's head
            self.hold_vocabulary(values["draft_vocab_size"], config.vocab_size, config.hidden_size, head_dtype)

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        initialise(self, self.config, generator, norm_scale)

    def forward(
        self, e: Tensor, features: Tensor, positions: tuple[Tensor, Tensor], attend: Callable[[int], Attend], finish: Finish | None = None
    ) -> Any:
        """e [R, H] embedded draft rows, features [T, K*H_t], positions of the context rows [T] and draft rows [R] -> [R, H].

        Training and serving differ only in `attend`, which gives each layer its attention: masked, over all documents, or with a cache
        that grows by T rows. The layers themselves do not know their number: they compile to one graph.
        finish: what is made of the states before the parameters of a sharded draft are gone; its result is returned in their place.
        """
        c = self.hidden_norm(self.fc(features))
        ropes = tuple(self.rotary(p, e.dtype) for p in positions)
        for number, layer in enumerate(self.layers):
            e = layer(e, c, ropes, attend(number))
        states = self.norm(e)
        return states if finish is None else finish(self, states, c)
