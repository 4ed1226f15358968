"""The EAGLE-3 draft: one Llama layer over [embedding ; feature], run step by step (arXiv 2503.01840; docs/eagle3.md).

      features of x_t [K*H] --fc--> g_t --hidden_norm--.
                                                        [2H] -> attention -> MLP -> state --norm--> target's LM head: x_{t+2}
      x_{t+1} --target's embedding--input_layernorm----'                        |
                       next step, same chain: [x_{t+2} ; state] <---------------'

The first step has a row for every context row t, as keys and values; the chains ask from the rows that they start at. Each
later step has one row per chain. Single-device mathematics: which rows see which is `attend`'s business, which token a chain
goes on with is `follow`'s. Parameter names are the serving format's tensor names. T context rows, R chains, H width, d head size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from torchspec.methods.fresh import initialise
from torchspec.methods.vocabulary import VocabularyHolder
from torchspec.nn.layers import MLP, RMSNorm, RotaryEmbedding, rotate

Rope = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, tuple[KeyValue, ...]], Tensor]  # q [R, heads, d], k/v of the context rows and of each later step
Follow = Callable[[int, Tensor], Tensor]  # step 1.., hidden [R, H] of the step before -> embedding [R, H] of the token to go on with


class Eagle3Attention(nn.Module):
    def __init__(self, config: LlamaConfig, width: int):
        """width: of what it reads."""
        super().__init__()
        self.head_dim, bias = config.head_dim, config.attention_bias
        query_size, kv_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, query_size, bias=bias)
        self.k_proj = nn.Linear(width, kv_size, bias=bias)
        self.v_proj = nn.Linear(width, kv_size, bias=bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bias)
        norms_heads = config.model_type == "qwen3"  # drafts of others; ours are Llama layers
        self.q_norm, self.k_norm = (RMSNorm(self.head_dim, config.rms_norm_eps) if norms_heads else nn.Identity() for _ in range(2))

    def forward(self, z: Tensor, rope: Rope, asking: Tensor | slice, past: tuple[KeyValue, ...], attend: Attend) -> tuple[Tensor, KeyValue]:
        """z [rows, width] -> what the asking rows read, and the keys and values of all rows."""
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p, x in ((self.q_proj, z[asking]), (self.k_proj, z), (self.v_proj, z)))
        q, key_value = rotate(self.q_norm(q), tuple(x[asking] for x in rope)), (rotate(self.k_norm(k), rope), v)
        return self.o_proj(attend(q, (*past, key_value)).flatten(1)), key_value


class Eagle3Layer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Eagle3Attention(config, 2 * config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self, e: Tensor, state: Tensor, rope: Rope, asking: Tensor | slice, past: tuple[KeyValue, ...], attend: Attend
    ) -> tuple[Tensor, KeyValue]:
        """e, state [rows, H] -> new state of the asking rows, and the keys and values of all rows."""
        normed = self.hidden_norm(state)
        mixed, key_value = self.self_attn(torch.cat((self.input_layernorm(e), normed), dim=-1), rope, asking, past, attend)
        y = (normed if self.norm_before_residual else state)[asking] + mixed
        return y + self.mlp(self.post_attention_layernorm(y)), key_value


class EagleDraft(VocabularyHolder):
    """What a draft is around its layers: features in, the last norm, the tokens that it can propose. A subclass adds `layers`."""

    def __init__(self, config: LlamaConfig, head_dtype: torch.dtype):
        super().__init__()
        self.config = config
        count, width = config.num_aux_hidden_states, config.hidden_size
        self.input_norm = RMSNorm(count * width, config.rms_norm_eps) if config.norm_before_fc else None
        self.fc_norm = nn.ModuleList(RMSNorm(width, config.rms_norm_eps) for _ in range(count)) if config.fc_norm else None
        self.fc = nn.Linear(count * width, width, bias=False)
        self.norm = RMSNorm(width, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config)
        if config.draft_vocab_size is not None:
            self.hold_vocabulary(config.draft_vocab_size, config.vocab_size, width, head_dtype)

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        initialise(self, self.config, generator, norm_scale)

    def combine(self, features: Tensor) -> Tensor:
        """[T, K*H] of the captured layers -> g [T, H]."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            chunks = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], dim=-1)
        return self.fc(features)


class Eagle3Draft(EagleDraft):
    def __init__(self, config: LlamaConfig, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        self.midlayer = Eagle3Layer(config)
        self.layers = (self.midlayer,)  # what the trainer shards, compiles and checkpoints; a tuple adds no second name

    def forward(self, e: Tensor, features: Tensor, positions: Tensor, starts: Tensor, steps: int, follow: Follow, attend: Attend) -> Tensor:
        """Context rows: e [T, H] embeds the token after each, features [T, K*H], positions [T]; starts [R]: where chains start.

        Returns the normed output of every step [steps, R, H]. Training and serving differ only in `follow`, the text or the
        draft's own choice, and in `attend`, all chains of all documents or a cache.
        """
        state, asking, past, outputs = self.combine(features), starts, (), []
        for step in range(steps):
            if step > 0:
                e = follow(step, outputs[-1])
            state, key_value = self.midlayer(e, state, self.rotary(positions, e.dtype), asking, past, attend)
            outputs.append(self.norm(state))
            state = outputs[-1] if self.config.norm_output else state
            past, positions, asking = (*past, key_value), positions[asking] + 1, slice(None)
        return torch.stack(outputs)
