"""DSpark's heads written out from their definition in float64, one slot at a time; the backbone is reference.py's."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.unit.methods.reference import block_hidden, candidates, slot_weights


def slots(w: dict[str, Tensor], kind: str, hidden: Tensor, anchor: int, head: Tensor, following: Callable) -> list[tuple[Tensor, Tensor]]:
    """hidden [S, H] of the rows that propose -> (logits [V], confidence logit or None) of each slot. following(slot, logits): the token
    that the next slot reads.
    """
    before, memory, found = anchor, torch.zeros(w["markov_head.markov_w1.weight"].shape[1], dtype=torch.float64), []
    for k, h in enumerate(hidden):
        e = w["markov_head.markov_w1.weight"][before]
        factor = e
        if kind == "gated":
            factor = (w["markov_head.gate_proj.weight"] @ torch.cat((h, e)) + w["markov_head.gate_proj.bias"]).sigmoid() * e
        if kind == "rnn":
            joined = w["markov_head.joint_proj.weight"] @ torch.cat((memory, e, h)) + w["markov_head.joint_proj.bias"]
            gate, candidate, out = joined.view(3, -1)
            memory, factor = gate.sigmoid() * memory + (1 - gate.sigmoid()) * candidate.tanh(), out.tanh()
        logits = head @ h + w["markov_head.markov_w2.weight"] @ factor
        confidence = None
        if "confidence_head.proj.weight" in w:
            weight = w["confidence_head.proj.weight"][0]
            read = torch.cat((h, e)) if len(weight) > len(h) else h
            confidence = weight @ read + w["confidence_head.proj.bias"][0]
        found.append((logits, confidence))
        before = following(k, logits)
    return found


def rows(
    w: dict[str, Tensor], config: SimpleNamespace, embedding: Tensor, features: Tensor, anchor: int, token: int, bonus: bool
) -> Tensor:
    """bonus: the anchor's row proposes nothing."""
    return block_hidden(w, config, embedding, features, anchor, token)[int(bonus) :]


def loss(
    w: dict, method, tables: tuple[Tensor, Tensor], documents: list[tuple], alpha: float, ce_l1: tuple = (0.1, 0.9)
) -> tuple[Tensor, dict]:
    """CE, L1 and alpha BCE with D-PACE's weights; every candidate of every (ids, mask, features, log p [L, V]) is an anchor."""
    config, (embedding, head) = method.config, tables
    kind, bonus = config.dflash_config["markov_head_type"], not config.dflash_config["sample_from_anchor"]
    total, sums = torch.zeros((), dtype=torch.float64), {"weight": 0.0, "overlap": 0.0, "count": 0}
    for ids, mask, features, law in documents:
        for anchor in candidates(mask):
            hidden, text = rows(w, config, embedding, features, anchor, ids[anchor], bonus), ids[anchor + 1 :]
            terms, chances = [], []
            for k, (logits, confidence) in enumerate(
                slots(w, kind, hidden, ids[anchor], head, lambda k, _, text=text: text[min(k, len(text) - 1)])
            ):
                if anchor + 1 + k >= len(ids) or not mask[anchor + 1 + k]:
                    break
                q, p = logits.softmax(0), law[anchor + k].exp()
                ce, overlap = -q[text[k]].log(), torch.minimum(p, q).sum().detach()
                term = ce_l1[0] * ce + ce_l1[1] * (p - q).abs().sum()
                if confidence is not None:
                    c = confidence.sigmoid()
                    term = term - alpha * (overlap * c.log() + (1 - overlap) * (1 - c).log())
                terms.append(term)
                chances.append(math.exp(-float(ce.detach())))
                sums["overlap"], sums["count"] = sums["overlap"] + float(overlap), sums["count"] + 1
            weights = slot_weights(chances, None)
            total = total + sum(weight * term for weight, term in zip(weights, terms, strict=True))
            sums["weight"] += math.fsum(weights)
    return total, sums
