"""DFlash written out from its definition in float64, one block and one token at a time; nothing is shared with the package."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """x [rows, heads, d]: pair (i, i + d/2) is turned by position * theta^(-2i/d)."""
    half = x.shape[-1] // 2
    angle = position[:, None, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), dim=-1)


def bare(_layer: dict[str, Tensor], _name: str, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
    return sublayer(x)


def block_hidden(
    w: dict[str, Tensor], config, embedding: Tensor, features: Tensor, anchor: int, token: int, around: Callable[..., Tensor] = bare
) -> Tensor:
    """The block after the first `anchor` tokens of one document, whose token at the anchor is `token`: [B, H].

    around: what stands around attention and MLP, given the layer's weights, "attention" or "mlp", the normed rows [B, H] and the sublayer.
    """
    eps, size, theta = config.rms_norm_eps, config.head_dim, config.rope_parameters["rope_theta"]
    groups = config.num_attention_heads // config.num_key_value_heads
    c = rms(features[:anchor] @ w["fc.weight"].T, w["hidden_norm.weight"], eps)
    e = embedding[[token] + [config.dflash_config["mask_token_id"]] * (config.block_size - 1)]
    position = torch.arange(anchor + config.block_size)
    for i in range(config.num_hidden_layers):
        layer = {name.removeprefix(f"layers.{i}."): value for name, value in w.items() if name.startswith(f"layers.{i}.")}

        def attend(u: Tensor, layer=layer, kind=config.layer_types[i]) -> Tensor:
            rows = torch.cat((c, u))
            q = rms((u @ layer["self_attn.q_proj.weight"].T).unflatten(1, (-1, size)), layer["self_attn.q_norm.weight"], eps)
            k = rms((rows @ layer["self_attn.k_proj.weight"].T).unflatten(1, (-1, size)), layer["self_attn.k_norm.weight"], eps)
            v = (rows @ layer["self_attn.v_proj.weight"].T).unflatten(1, (-1, size)).repeat_interleave(groups, dim=1)
            q, k = turn(q, position[anchor:], theta), turn(k, position, theta).repeat_interleave(groups, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
            if kind == "sliding_attention":  # a slot sees itself and the window - 1 positions before it, none behind it
                away = position[anchor:, None] - position
                scores = scores.masked_fill((away < 0) | (away >= config.sliding_window), -math.inf)
            return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1) @ layer["self_attn.o_proj.weight"].T

        def mlp(z: Tensor, layer=layer) -> Tensor:
            gate = z @ layer["mlp.gate_proj.weight"].T
            return (gate * gate.sigmoid() * (z @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T

        e = e + around(layer, "attention", rms(e, layer["input_layernorm.weight"], eps), attend)
        e = e + around(layer, "mlp", rms(e, layer["post_attention_layernorm.weight"], eps), mlp)
    return rms(e, w["norm.weight"], eps)


def candidates(mask: list[bool]) -> list[int]:
    return [t for t in range(len(mask) - 1) if mask[t] and mask[t + 1]]


def slot_weights(chances: list[float], gamma: float | None) -> list[float]:
    """Of the scored slots of one block. D-PACE: slot k counts for every prefix that it is part of, with that prefix's softened chance."""
    if gamma is not None:
        return [math.exp(-k / gamma) for k in range(len(chances))]
    prefix_chance = [math.prod(0.5 * x + 0.5 for x in chances[: j + 1]) for j in range(len(chances))]
    return [sum(prefix_chance[k:]) for k in range(len(chances))]


def slot_loss(mixture: dict[str, float], logits: Tensor, label: int, p: Tensor | None) -> tuple[Tensor, float]:
    """The mixture at one slot, and the chance that D-PACE counts with. p [V]: the target's law there."""
    log_q = logits - torch.logsumexp(logits, 0)
    q, kinds = log_q.exp(), {"ce": -log_q[label]}
    chance = q[label]
    if p is not None:
        overlap = torch.minimum(p, q).sum()
        kinds |= {"kl": (p * (p.log() - log_q)).sum(), "tv": (p - q).abs().sum() / 2}
        share = torch.exp(-3 * overlap.detach())
        kinds["lk"] = share * kinds["kl"] + (1 - share) * kinds["tv"]
        chance = chance if "ce" in mixture else overlap
    return sum(weight * kinds[kind] for kind, weight in mixture.items()), float(chance.detach())


def loss(
    w: dict, config, embedding: Tensor, head: Tensor, gamma: float | None, documents: list[tuple],
    mixture: dict[str, float] | None = None, laws: list[Tensor] | None = None,
) -> tuple[Tensor, dict]:  # fmt: skip
    """Every candidate of every (ids, mask, features) is an anchor. Sum of the weighted losses, and all sums and counts.

    laws: of each document, the target's of the token after each one, [L, V].
    """
    total, slots = torch.zeros((), dtype=torch.float64), config.block_size - 1
    sums = {"weight": 0.0, "loss": [0.0] * slots, "right": [0] * slots, "count": [0] * slots, "tau": 0, "blocks": 0}
    for n, (ids, mask, features) in enumerate(documents):
        for anchor in candidates(mask):
            hidden = block_hidden(w, config, embedding, features, anchor, ids[anchor])
            prefix, losses, chances = 1, [], []
            for k in range(1, config.block_size):
                if anchor + k >= len(ids) or not mask[anchor + k]:
                    break
                logits = hidden[k] @ head.T
                p = None if laws is None else laws[n][anchor + k - 1]
                value, chance = slot_loss(mixture or {"ce": 1.0}, logits, ids[anchor + k], p)
                losses.append(value)
                chances.append(chance)
                right = int(logits.argmax()) == ids[anchor + k]
                prefix += right and prefix == k
                sums["loss"][k - 1] += float(losses[-1].detach())
                sums["right"][k - 1] += right
                sums["count"][k - 1] += 1
            weights = slot_weights(chances, gamma)
            total = total + sum(weight * x for weight, x in zip(weights, losses, strict=True))
            sums["weight"] += sum(weights)
            sums["tau"] += prefix
            sums["blocks"] += 1
    return total, sums
