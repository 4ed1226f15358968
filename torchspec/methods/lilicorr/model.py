"""The correlator: a small transformer over the K candidates of all slots of a block says which candidate follows which.

      slot          1      2      3                   out vector of a candidate . in vector of one of the next slot
      candidates  c_11   c_21   c_31                      = cosine of the pair, times lilicorr_logit_scale
                  c_12 - c_22 - c_32      K = 2       slot 1: the anchor's own vector in place of a predecessor's

(LiLiCorr, arXiv 2608.20530.) Parameter names under `lilicorr.` are the serving format's; n blocks, S slots, h lattice width.
"""

import torch
from torch import Tensor, nn
from transformers import Qwen3Config

from torchspec.methods.block.model import BlockDraft
from torchspec.nn.layers import RMSNorm

FEATURES = 5  # of a candidate: log q, q, how far log q is from the best one's, rank / (K-1), is it the best


class Feedforward(nn.Module):
    def __init__(self, width: int, inner: int, out: int):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.up_proj(x)))


class LatticeAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = nn.Parameter(torch.empty(3 * width, width)), nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [n, S*K, h], bias [heads, S*K, S*K] added to the scores; every candidate sees all others."""
        joined = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(x), -1, -1, -1))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class LatticeLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(width, eps), LatticeAttention(width, heads)
        self.mlp_norm, self.mlp = RMSNorm(width, eps), Feedforward(width, inner, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), bias)
        return x + self.mlp(self.mlp_norm(x))


class Lattice(nn.Module):
    def __init__(self, config: Qwen3Config):
        super().__init__()
        of, draft, slots, eps = config.dflash_config, config.hidden_size, config.block_size - 1, config.rms_norm_eps
        width, heads, self.count = of["lilicorr_hidden_size"] or draft, of["lilicorr_num_heads"], of["lilicorr_candidate_topk"]
        factors, self.scale, self.vector_eps = of["lilicorr_factor_dim"], of["lilicorr_logit_scale"], of["lilicorr_vector_eps"]
        self.token_proj = nn.Identity() if width == draft else nn.Linear(draft, width)
        self.pass_hidden_proj, self.context_proj = nn.Linear(draft, width), nn.Linear(draft, width)
        self.feature_norm, self.feature_mlp = nn.LayerNorm(FEATURES), Feedforward(FEATURES, width, width)
        self.slot_embedding = nn.Parameter(torch.empty(1, 1, slots, 1, width))
        self.rank_embedding = nn.Parameter(torch.empty(1, 1, 1, self.count, width))
        self.relative_slot_bias = nn.Parameter(torch.empty(heads, 2 * slots + 1))
        self.same_slot_bias = nn.Parameter(torch.empty(heads))
        inner = int(width * of["lilicorr_mlp_ratio"])
        self.layers = nn.ModuleList(LatticeLayer(width, heads, inner, eps) for _ in range(of["lilicorr_num_layers"]))
        self.output_norm, self.anchor_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.factor_input_proj = nn.Linear(3 * width, width)
        self.out_head, self.in_head, self.anchor_out_head = (nn.Linear(width, factors) for _ in range(3))

    def initialise(self, generator: torch.Generator, std: float) -> None:
        """As published: Normal(0, std) matrices, norms of one, zero biases and embeddings. Vectors of zeros for out and in alike would
        leave both without a gradient.
        """
        for name, weight in self.named_parameters():
            if name.endswith("bias") or name in ("slot_embedding", "rank_embedding"):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=std, generator=generator)
            else:
                nn.init.ones_(weight)

    def forward(self, embedded: Tensor, log_q: Tensor, states: Tensor, context: Tensor) -> Tensor:
        """embedded [n, S, K, H] candidates, log_q [n, S, K] float32, states [n, S, H], context [n, H] -> scores float32 [n, S, K, K]:
        of each candidate (last) after each of the slot before; in the first slot all rows are the anchor's.
        """
        slots, count = log_q.shape[1:]
        x = self.token_proj(embedded) + self.pass_hidden_proj(states)[:, :, None]
        x = x + self.feature_mlp(self.feature_norm(_features(log_q).to(x.dtype)))
        x = (x + self.slot_embedding[:, 0] + self.rank_embedding[:, 0]).flatten(1, 2)
        bias = self._bias(slots, count)
        for layer in self.layers:
            x = layer(x, bias)
        known = (context != 0).any(-1, keepdim=True)  # no token stands before the first one of a text
        anchor = self.anchor_norm(self.context_proj(context) * known)
        x = self.output_norm(x)
        joined = torch.cat((x, anchor[:, None].expand_as(x), x * anchor[:, None]), dim=-1)
        factors = nn.functional.silu(self.factor_input_proj(joined)).unflatten(1, (slots, count))
        out, into = self._unit(self.out_head(factors)), self._unit(self.in_head(factors))
        start = self._unit(self.anchor_out_head(anchor))[:, None, None] @ into[:, :1].mT  # [n, 1, 1, K]
        return self.scale * torch.cat((start.expand(-1, -1, count, -1), out[:, :-1] @ into[:, 1:].mT), dim=1)

    def _unit(self, x: Tensor) -> Tensor:
        """In float32: bfloat16 knows so few cosines that candidates would tie."""
        return nn.functional.normalize(x.float(), dim=-1, eps=self.vector_eps)

    def _bias(self, slots: int, count: int) -> Tensor:
        """[heads, S*K, S*K]: by how many slots a candidate is behind the one that it looks at."""
        slot = torch.arange(slots, device=self.relative_slot_bias.device).repeat_interleave(count)
        away = slot[:, None] - slot
        return self.relative_slot_bias[:, away + self.relative_slot_bias.shape[1] // 2] + self.same_slot_bias[:, None, None] * (away == 0)


def _features(log_q: Tensor) -> Tensor:
    """[n, S, K] of candidates in falling order -> [n, S, K, FEATURES]."""
    rank = torch.arange(log_q.shape[-1], device=log_q.device, dtype=log_q.dtype).expand_as(log_q)
    gap = log_q - log_q.max(dim=-1, keepdim=True).values
    return torch.stack((log_q, log_q.exp(), gap, rank / max(1, log_q.shape[-1] - 1), (rank == 0).to(log_q.dtype)), dim=-1)


class LiLiCorrDraft(BlockDraft):
    def __init__(self, config: Qwen3Config, head_dtype: torch.dtype):
        super().__init__(config, head_dtype)
        self.lilicorr = Lattice(config)

    def initialise(self, generator: torch.Generator, norm_scale: float) -> None:
        super().initialise(generator, norm_scale)
        self.lilicorr.initialise(generator, self.config.initializer_range)
