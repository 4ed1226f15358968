"""The P-EAGLE draft: EAGLE-3's layer and ordinary Llama layers over all rows at once (arXiv 2602.01469; docs/peagle.md).

      features of x_t [K*H] --fc--> g_t -----------.                              state of row t --norm--> target's LM head: x_{t+2}
      x_{t+1} --target's embedding-----------------+--> layer 0 .. D-1, causal -->
      mask_hidden --fc--> g, mask token's embedding'    behind row t: mask rows   d-th mask row  --norm--> target's LM head: x_{t+2+d}

Single-device mathematics: which rows see which is `attend`'s business. Parameter names are the serving format's tensor names.
T context rows, R mask rows, H width, d head size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from torchspec.methods.eagle3.model import Eagle3Attention, Eagle3Layer, EagleDraft, Rope
from torchspec.nn.chain_attention import Attend
from torchspec.nn.layers import MLP, RMSNorm


class LlamaLayer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Eagle3Attention(config, config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """x [rows, H] -> [rows, H]."""
        mixed, _ = self.self_attn(self.input_layernorm(x), rope, slice(None), (), lambda q, past: attend(q, *past[0]))
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class FirstLayer(Eagle3Layer):
    """EAGLE-3's, whose first step is all that there is."""

    def forward(self, e: Tensor, state: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """e, state [rows, H] -> [rows, H]."""
        return super().forward(e, state, rope, slice(None), (), lambda q, past: attend(q, *past[0]))[0]


class PeagleDraft(EagleDraft):
    def __init__(self, config: LlamaConfig, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        self.layers = nn.ModuleList([FirstLayer(config), *(LlamaLayer(config) for _ in range(1, config.num_hidden_layers))])
        self.mask_hidden = nn.Parameter(torch.empty(1, 1, self.fc.in_features))

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        """mask_hidden: as large as features are, since its norm takes the size away and leaves the slower learning."""
        super().initialise(generator, norm_scale)
        nn.init.normal_(self.mask_hidden, generator=generator)

    def forward(
        self, e: Tensor, mask: Tensor, features: Tensor, positions: tuple[Tensor, Tensor], asking: Tensor, attend: Callable[[int], Attend]
    ) -> Tensor:
        """e [T, H] embeds the token after each context row, mask [H] the mask token; features [T, K*H], positions [T] and [R] of the
        context and the mask rows; asking [q]: rows of both, one behind the other. Returns their normed output [q, H].

        Training and serving differ only in `attend`, which gives each layer its attention: all chains of all documents, or a cache.
        """
        rows = len(positions[1])
        g = self.combine(torch.cat((features, self.mask_hidden[0])))
        x, e = (torch.cat((own, masked.expand(rows, -1))) for own, masked in ((g[:-1], g[-1:]), (e, mask)))
        rope = self.rotary(torch.cat(positions), e.dtype)
        first, *others = self.layers
        x = first(e, x, rope, attend(0))
        for number, layer in enumerate(others, 1):
            x = layer(x, rope, attend(number))
        return self.norm(x[asking])
