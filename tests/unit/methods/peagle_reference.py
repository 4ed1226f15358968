"""P-EAGLE written out from its definition in float64, one row at a time; of the package nothing is used."""

import math

import torch
from torch import Tensor

from tests.unit.methods.eagle3_reference import combined, divergence, law
from tests.unit.methods.reference import candidates, rms, turn


def chain_hidden(w: dict[str, Tensor], config, embedding: Tensor, ids: list[int], features: Tensor, anchor: int, depths: int) -> Tensor:
    """Normed outputs [depths, H] after the first `anchor` tokens, whose anchor is ids[anchor]: a causal model of rows 0 .. anchor-1, each
    of a feature and the token after it, and of mask rows behind them.
    """
    eps, size, theta = config.rms_norm_eps, config.head_dim, config.rope_parameters["rope_theta"]
    groups = config.num_attention_heads // config.num_key_value_heads
    caches = [([], []) for _ in range(config.num_hidden_layers)]

    def through(number: int, z: Tensor, position: int) -> Tensor:
        layer = {name.removeprefix(f"layers.{number}."): value for name, value in w.items() if name.startswith(f"layers.{number}.")}

        def heads(name: str) -> Tensor:
            return (layer[f"self_attn.{name}_proj.weight"] @ z).view(1, -1, size)

        at = torch.tensor([position], dtype=torch.float64)
        for kept, new in zip(caches[number], (turn(heads("k"), at, theta)[0], heads("v")[0]), strict=True):
            kept.append(new)
        k, v = (torch.stack(x).repeat_interleave(groups, dim=1) for x in caches[number])
        weights = (torch.einsum("hd,khd->hk", turn(heads("q"), at, theta)[0], k) / math.sqrt(size)).softmax(-1)
        return layer["self_attn.o_proj.weight"] @ torch.einsum("hk,khd->hd", weights, v).flatten()

    def added(number: int, y: Tensor) -> Tensor:
        x = rms(y, w[f"layers.{number}.post_attention_layernorm.weight"], eps)
        gate, up, down = (w[f"layers.{number}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return y + down @ ((gate @ x) * (gate @ x).sigmoid() * (up @ x))

    outputs = []
    for position in range(anchor - 1 + depths):
        real = position < anchor
        g = combined(w, config, features[position : position + 1] if real else w["mask_hidden"][0])[0]
        normed = rms(g, w["layers.0.hidden_norm.weight"], eps)
        token = embedding[ids[position + 1] if real else config.mask_token_id]
        z = torch.cat((rms(token, w["layers.0.input_layernorm.weight"], eps), normed))
        x = added(0, (normed if config.norm_before_residual else g) + through(0, z, position))
        for number in range(1, config.num_hidden_layers):
            z = rms(x, w[f"layers.{number}.input_layernorm.weight"], eps)
            x = added(number, x + through(number, z, position))
        outputs.append(rms(x, w["norm.weight"], eps))
    return torch.stack(outputs[anchor - 1 :])


def loss(w: dict, method, documents: list[tuple], depths_of) -> tuple[Tensor, dict]:
    """Every candidate of every (ids, mask, context) but the first token is an anchor, its chain as long as depths_of(document, anchor).
    Weighted loss, and all sums and counts.
    """
    config, target, options = method.config, method.target, method.options
    ids_of, head, embedding, depths = (
        method.vocabulary.ids.tolist(),
        method.vocabulary.head.double(),
        target.embedding.double(),
        options.num_depths,
    )
    total = torch.zeros((), dtype=torch.float64)
    sums = {"weight": 0.0, "loss": [0.0] * depths, "right": [0] * depths, "count": [0] * depths, "tau": 0, "blocks": 0, "covered": 0}
    for n, (ids, mask, context) in enumerate(documents):
        features, last = context[:, : -embedding.shape[1]], context[:, -embedding.shape[1] :]
        for anchor in candidates(mask):
            if anchor == 0:
                continue
            length = depths_of(n, anchor)
            hidden, prefix = chain_hidden(w, config, embedding, ids, features, anchor, length), 1
            for k in range(1, length + 1):
                if anchor + k >= len(ids) or not mask[anchor + k]:
                    break
                p = law(target, head @ rms(last[anchor + k - 1], target.norm.weight.double(), config.rms_norm_eps)).softmax(-1)
                logits = head @ hidden[k - 1]
                each, weight = divergence(options.loss, p, logits.softmax(-1)), options.loss_step_decay ** (k - 1)
                right = ids_of[int(logits.argmax())] == ids[anchor + k]
                total = total + weight * each
                prefix += right and prefix == k
                sums["weight"] += weight
                sums["loss"][k - 1] += float(each.detach())
                sums["right"][k - 1] += right
                sums["count"][k - 1] += 1
                sums["covered"] += ids[anchor + k] in ids_of
            if length == depths:
                sums["tau"] += prefix
                sums["blocks"] += 1
    return total, sums
