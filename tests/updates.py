"""Weights that AdamW moved by the same gradients, added up in another order."""

import torch

TOLERANCE = 5e-5  # some float32 roundings of weights of size 0.02, after a few steps
ALL_ROUNDING = 1e-3  # of a matrix: gradients near AdamW's epsilon, which it divides by their own size; these may part by as much as a step


def assert_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], rate: float) -> None:
    """rate: the learning rate. What is no number of AdamW's, the maps of a vocabulary, is equal."""
    assert set(ours) == set(theirs)
    for name in theirs:
        if not theirs[name].is_floating_point():
            assert torch.equal(ours[name], theirs[name]), name
            continue
        apart = (ours[name] - theirs[name]).detach().abs()
        share = float((apart > TOLERANCE).float().mean())
        assert share <= ALL_ROUNDING and float(apart.max()) <= rate, f"{name}: {share:.2%} part, by up to {float(apart.max()):.1e}"
