"""LiLiCorr written out from its definition in float64, one candidate at a time, on top of DFlash's; nothing is shared with the package."""

import math

import torch
from torch import Tensor

from tests.unit.methods import reference
from tests.unit.methods.reference import rms


def affine(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def unit(x: Tensor, eps: float) -> Tensor:
    return x / max(float(x.detach().norm()), eps) if x.detach().norm() < eps else x / x.norm()


def best(states: Tensor, head: Tensor, count: int) -> tuple[list[list[int]], Tensor]:
    """states [S, H] -> the candidates of each slot, best first, and their log q over the whole vocabulary [S, K]."""
    log_q = states @ head.T - torch.logsumexp(states @ head.T, -1, keepdim=True)
    chosen = [sorted(range(len(head)), key=lambda v, row=row: -float(row[v]))[:count] for row in log_q.detach()]
    return chosen, torch.stack([row[tokens] for row, tokens in zip(log_q, chosen, strict=True)])


def lattice(w: dict[str, Tensor], config, tokens: list[list[int]], log_q: Tensor, embedding: Tensor, states: Tensor, c: Tensor | None):
    """w: without `lilicorr.`; c [H]: the row of the token before the anchor, if there is one -> (start [K], pair [S-1][K][K])."""
    of, eps = config.dflash_config, config.rms_norm_eps
    slots, count, heads, tiny = len(tokens), of["lilicorr_candidate_topk"], of["lilicorr_num_heads"], of["lilicorr_vector_eps"]
    rows, trained = [], w["slot_embedding"].shape[2]
    for s in range(slots):
        for r in range(count):
            f = torch.stack([log_q[s, r], log_q[s, r].exp(), log_q[s, r] - log_q[s].max(), *torch.tensor([r / (count - 1), r == 0.0])])
            f = (f - f.mean()) / (f.var(correction=0) + 1e-5).sqrt() * w["feature_norm.weight"] + w["feature_norm.bias"]
            token = embedding[tokens[s][r]]
            token = affine(w, "token_proj", token) if "token_proj.weight" in w else token
            x = (
                token
                + affine(w, "pass_hidden_proj", states[s])
                + affine(w, "feature_mlp.down_proj", silu(affine(w, "feature_mlp.up_proj", f)))
            )
            rows.append(x + w["slot_embedding"][0, 0, s, 0] + w["rank_embedding"][0, 0, 0, r])
    x = torch.stack(rows)
    for i in range(of["lilicorr_num_layers"]):
        layer = {name.removeprefix(f"layers.{i}."): value for name, value in w.items() if name.startswith(f"layers.{i}.")}
        joined = rms(x, layer["attn_norm.weight"], eps) @ layer["attn.in_proj_weight"].T + layer["attn.in_proj_bias"]
        q, k, v = (part.unflatten(1, (heads, -1)) for part in joined.chunk(3, 1))
        mixed = []
        for a in range(len(x)):
            score = torch.einsum("hd,bhd->hb", q[a], k) / math.sqrt(q.shape[-1])
            away = [a // count - b // count for b in range(len(x))]
            bias = [w["relative_slot_bias"][:, d + trained] + (d == 0) * w["same_slot_bias"] for d in away]
            mixed.append(torch.einsum("hb,bhd->hd", (score + torch.stack(bias, 1)).softmax(-1), v).flatten())
        x = x + affine(layer, "attn.out_proj", torch.stack(mixed))
        x = x + affine(layer, "mlp.down_proj", silu(affine(layer, "mlp.up_proj", rms(x, layer["mlp_norm.weight"], eps))))
    x = rms(x, w["output_norm.weight"], eps)
    anchor = torch.zeros(x.shape[1], dtype=x.dtype) if c is None else affine(w, "context_proj", c)
    anchor = rms(anchor, w["anchor_norm.weight"], eps)
    factors = [silu(affine(w, "factor_input_proj", torch.cat((row, anchor, row * anchor)))) for row in x]
    out, into = ([unit(affine(w, f"{side}_head", row), tiny) for row in factors] for side in ("out", "in"))
    first, scale = unit(affine(w, "anchor_out_head", anchor), tiny), of["lilicorr_logit_scale"]
    start = torch.stack([scale * first @ into[j] for j in range(count)])
    pair = [
        [torch.stack([scale * out[s * count + i] @ into[(s + 1) * count + j] for j in range(count)]) for i in range(count)]
        for s in range(slots - 1)
    ]
    return start, pair


def greedy(tokens: list[list[int]], start: Tensor, pair: list) -> list[int]:
    """The walk: always the best after the one chosen before."""
    path, row = [], start
    for s in range(len(tokens)):
        chosen = int(row.argmax())
        path.append(tokens[s][chosen])
        row = pair[s][chosen] if s < len(pair) else None
    return path


def path_loss(mixture: dict[str, float], row: Tensor, gold: int, target: Tensor) -> Tensor:
    """row, target [K]: scores after the text's token, and the target's logits of the same candidates."""
    q = row.softmax(0)
    others = [row[j] for j in range(len(row)) if j != gold]
    kinds = {
        "ce": -q[gold].log(),
        "margin": torch.clamp(2.0 - (row[gold] - torch.stack(others).max()), min=0),
        "pen": sum(q[j] * torch.clamp(target[gold] - target[j], min=0) for j in range(len(row))),
        "tv": (q - target.softmax(0)).abs().sum() / 2,
    }
    return sum(weight * kinds[kind] for kind, weight in mixture.items())


def loss(
    w: dict, config, embedding: Tensor, head: Tensor, documents: list[tuple], mixture: dict, path: dict, logits: list[Tensor]
) -> tuple:
    """Every candidate anchor of every (ids, mask, features) -> sum of the weighted losses, and all sums. logits: the target's, [L, V]."""
    total, slots = torch.zeros((), dtype=torch.float64), config.block_size - 1
    sums = {"weight": 0.0, "right": [0] * slots, "held": [0] * slots, "count": [0] * slots, "tau": 0, "covered": 0, "blocks": 0, "paths": 0}
    own = {name.removeprefix("lilicorr."): value for name, value in w.items() if name.startswith("lilicorr.")}
    for n, (ids, mask, features) in enumerate(documents):
        for anchor in reference.candidates(mask):
            states = reference.block_hidden(w, config, embedding, features, anchor, ids[anchor])[1:]
            c = rms(features[anchor - 1] @ w["fc.weight"].T, w["hidden_norm.weight"], config.rms_norm_eps) if anchor else None
            tokens, log_q = best(states, head, config.dflash_config["lilicorr_candidate_topk"])
            start, pair = lattice(own, config, tokens, log_q, embedding, states, c)
            losses, chances, row, prefix, covered = [], [], start, 1, 1
            for k in range(slots):
                if anchor + k + 1 >= len(ids) or not mask[anchor + k + 1]:
                    break
                label, law = ids[anchor + k + 1], logits[n][anchor + k]
                value, chance = reference.slot_loss(
                    mixture, states[k] @ head.T, label, law.softmax(0) if mixture.keys() != {"ce"} else None
                )
                held = label in tokens[k]
                if held and covered == k + 1:
                    value = value + path_loss(path, row, tokens[k].index(label), law[tokens[k]])
                    sums["paths"] += 1
                right = held and row is not None and int(row.argmax()) == tokens[k].index(label)
                prefix, covered = prefix + (right and prefix == k + 1), covered + (held and covered == k + 1)
                losses.append(value)
                chances.append(chance)
                for name, true in (("held", held), ("right", right and covered == k + 2), ("count", True)):
                    sums[name][k] += true
                row = pair[k][tokens[k].index(label)] if held and k < len(pair) else None
            weights = reference.slot_weights(chances, None)
            total = total + sum(weight * x for weight, x in zip(weights, losses, strict=True))
            sums["weight"] += sum(weights)
            sums["tau"] += prefix
            sums["covered"] += covered
            sums["blocks"] += 1
    return total, sums
