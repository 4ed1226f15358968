"""What DFlash2 adds to DFlash, from its definition in float64: one row, tap and candidate at a time; nothing is shared with the package."""

from functools import partial

import torch
from torch import Tensor

from tests.unit.methods import reference


def convolved(layer: dict, name: str, side: int, x: Tensor, own: Tensor) -> Tensor:
    """x [B, H]; own [B, 2, T, G]."""
    base, group = layer[f"{name}_conv.base_kernel"][side], x.shape[1] // own.shape[-1]
    kernel = [[base[t] + own[k, side, t].repeat_interleave(group) for t in range(len(base))] for k in range(len(x))]
    return torch.stack([sum(kernel[k][t] * x[k - t] for t in range(len(base)) if t <= k) for k in range(len(x))])


def around(layer: dict, name: str, x: Tensor, sublayer) -> Tensor:
    taps = layer[f"{name}_conv.base_kernel"].shape[1]
    own = (x @ layer[f"{name}_conv.kernel_projection.weight"].T).view(len(x), 2, taps, -1)
    return convolved(layer, name, 1, sublayer(convolved(layer, name, 0, x, own)), own)


block_hidden = partial(reference.block_hidden, around=around)


def added(w: dict, state: Tensor, before: int, tokens: list[int]) -> Tensor:
    """What the selector adds to the logits of tokens after one token."""
    a, s, project = (w[f"candidate_selector.{n}"] for n in ("predecessor_codebook", "successor_codebook", "hidden_projection.weight"))
    return torch.stack([(a[before] * (project @ state) * s[token]).sum() for token in tokens])


def scores(w: dict, state: Tensor, head: Tensor, before: int, count: int, law=lambda x: x) -> tuple[list[int], Tensor]:
    """The candidates of a slot and their scores; law: of the draft's own logits."""
    logits = head @ state
    candidates = logits.topk(count).indices.tolist()
    return candidates, law(logits[candidates]) + added(w, state, before, candidates)


def chain(w: dict, states: Tensor, head: Tensor, anchor: int, count: int, law=lambda x: x) -> list[int]:
    """Greedy proposals of the slots whose states these are, each after the one before."""
    tokens = [anchor]
    for state in states:
        candidates, found = scores(w, state, head, tokens[-1], count, law)
        tokens.append(candidates[int(found.argmax())])
    return tokens[1:]
