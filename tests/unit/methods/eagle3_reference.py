"""EAGLE-3 written out from its definition in float64, one chain and one step at a time; nothing is shared with the package."""

import math

import torch
from torch import Tensor

from tests.unit.methods.reference import candidates, rms, turn


def combined(w: dict[str, Tensor], config, features: Tensor) -> Tensor:
    """[t, K*H] -> g [t, H]"""
    eps, count = config.rms_norm_eps, config.num_aux_hidden_states
    if config.norm_before_fc:
        features = rms(features, w["input_norm.weight"], eps)
    if config.fc_norm:
        parts = [rms(part, w[f"fc_norm.{i}.weight"], eps) for i, part in enumerate(features.chunk(count, dim=-1))]
        features = torch.cat(parts, dim=-1)
    return features @ w["fc.weight"].T


def chain_hidden(w: dict[str, Tensor], config, embedding: Tensor, ids: list[int], features: Tensor, anchor: int, fed: list[int]) -> Tensor:
    """Normed outputs [steps, H] of the chain at `anchor`; step i is fed the token fed[i], of which fed[0] is the anchor's own."""
    eps, size, theta = config.rms_norm_eps, config.head_dim, config.rope_parameters["rope_theta"]
    groups = config.num_attention_heads // config.num_key_value_heads
    layer = {name.removeprefix("midlayer."): value for name, value in w.items() if name.startswith("midlayer.")}

    def joined(token: int, state: Tensor) -> Tensor:
        return torch.cat((rms(embedding[token], layer["input_layernorm.weight"], eps), rms(state, layer["hidden_norm.weight"], eps)))

    def heads(name: str, z: Tensor, position: int | None) -> Tensor:
        x = (layer[f"self_attn.{name}_proj.weight"] @ z).view(1, -1, size)
        return x[0] if position is None else turn(x, torch.tensor([position], dtype=torch.float64), theta)[0]

    keys, values, state, outputs = [], [], None, []
    for t in range(anchor):
        state = combined(w, config, features[t : t + 1])[0]
        z = joined(ids[t + 1] if t < anchor - 1 else fed[0], state)
        keys.append(heads("k", z, t))
        values.append(heads("v", z, None))
    for step, token in enumerate(fed):
        z, position = joined(token, state), anchor - 1 + step
        if step > 0:
            keys.append(heads("k", z, position))
            values.append(heads("v", z, None))
        k, v = (torch.stack(x).repeat_interleave(groups, dim=1) for x in (keys, values))
        weights = (torch.einsum("hd,khd->hk", heads("q", z, position), k) / math.sqrt(size)).softmax(-1)
        residual = rms(state, layer["hidden_norm.weight"], eps) if config.norm_before_residual else state
        y = residual + layer["self_attn.o_proj.weight"] @ torch.einsum("hk,khd->hd", weights, v).flatten()
        x = rms(y, layer["post_attention_layernorm.weight"], eps)
        gate = layer["mlp.gate_proj.weight"] @ x
        y = y + layer["mlp.down_proj.weight"] @ (gate * gate.sigmoid() * (layer["mlp.up_proj.weight"] @ x))
        outputs.append(rms(y, w["norm.weight"], eps))
        state = outputs[-1] if config.norm_output else y
    return torch.stack(outputs)


def divergence(kind: str, p: Tensor, q: Tensor) -> Tensor:
    kl = (p * (p / q).log()).sum()
    if kind == "kl":
        return kl
    acceptance = torch.minimum(p, q).sum()
    share = math.exp(-3 * float(acceptance.detach()))
    return share * kl + (1 - share) * (1 - acceptance)


def law(target, logits: Tensor) -> Tensor:
    """What Granite and Gemma do to the head's product."""
    scaled = target.law.scale * logits
    return scaled if target.law.cap is None else target.law.cap * torch.tanh(scaled / target.law.cap)


def step_weights(decay: float | None, chances: list[float]) -> list[float]:
    """decay^i, or the chance that steps 1 to j are right, with s = (1 + chance) / 2 for each, summed over the j from the step on."""
    if decay is not None:
        return [decay**i for i in range(len(chances))]
    reached = [math.prod((1 + chance) / 2 for chance in chances[: j + 1]) for j in range(len(chances))]
    return [sum(reached[i:]) for i in range(len(chances))]


def loss(w: dict, method, documents: list[tuple]) -> tuple[Tensor, dict]:
    """Every candidate of every (ids, mask, context) but the first token is an anchor. Weighted loss, and all sums and counts."""
    config, target, options = method.config, method.target, method.options
    ids_of, head = method.vocabulary.ids.tolist(), method.vocabulary.head.double()
    embedding, steps = target.embedding.double(), options.ttt_length
    total = torch.zeros((), dtype=torch.float64)
    sums = {"weight": 0.0, "loss": [0.0] * steps, "right": [0] * steps, "count": [0] * steps, "tau": 0, "blocks": 0, "covered": 0}
    for ids, mask, context in documents:
        features, last = context[:, : -embedding.shape[1]], context[:, -embedding.shape[1] :]
        for anchor in candidates(mask):
            if anchor == 0:
                continue
            hidden = chain_hidden(w, config, embedding, ids, features, anchor, [ids[min(anchor + i, len(ids) - 1)] for i in range(steps)])
            prefix, chain = 1, []
            for k in range(1, steps + 1):
                if anchor + k >= len(ids) or not mask[anchor + k]:
                    break
                p = law(target, head @ rms(last[anchor + k - 1], target.norm.weight.double(), config.rms_norm_eps)).softmax(-1)
                logits = head @ hidden[k - 1]
                each = divergence(options.loss, p, logits.softmax(-1))
                chain.append((each, float(torch.minimum(p, logits.softmax(-1)).sum())))
                right = ids_of[int(logits.argmax())] == ids[anchor + k]
                prefix += right and prefix == k
                sums["loss"][k - 1] += float(each.detach())
                sums["right"][k - 1] += right
                sums["count"][k - 1] += 1
                sums["covered"] += ids[anchor + k] in ids_of
            for (each, _), weight in zip(chain, step_weights(options.loss_step_decay, [chance for _, chance in chain]), strict=True):
                total = total + weight * each
                sums["weight"] += weight
            sums["tau"] += prefix
            sums["blocks"] += 1
    return total, sums
