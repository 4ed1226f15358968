"""What a step of a chain sees of tokens and other chains: one input is changed, and all steps that must not see it stay bitwise."""

from dataclasses import replace

import pytest
import torch

from tests.unit.tiny import EAGLE3_LAYERS, HIDDEN, MASK, B, all_valid, lively, random_features
from torchspec.methods.eagle3 import method as eagle3
from torchspec.training.stream import pack

LENGTHS, ANCHORS, STARTS = (9, 6, 12), [[1, 4, 5], [1, 2, 3], [3, 7, 8]], (0, 9, 15)
SAMPLES = [random_features("0" * length, i, HIDDEN * 3, EAGLE3_LAYERS) for i, length in enumerate(LENGTHS)]
BATCH, LAYOUT, STEPS = pack(SAMPLES, epoch=0), all_valid(ANCHORS, LENGTHS), B - 1
CHAINS = [(n, anchor) for n in range(3) for anchor in ANCHORS[n]]


@pytest.fixture(scope="module")
def model(tiny_eagle3):
    return lively(tiny_eagle3.skeleton())


@torch.no_grad()
def outputs(method, model, ids, context, nudge=lambda step, e: e) -> torch.Tensor:
    """[steps, chains, H], teacher-forced; `nudge` may change what a step is fed."""
    labels = torch.stack([ids[STARTS[n] + anchor : STARTS[n] + anchor + B] for n, anchor in CHAINS])
    return method.hidden(model, ids, context, LAYOUT, lambda step, _: nudge(step, method.embed(labels[:, step])))


def changed(before: torch.Tensor, after: torch.Tensor) -> list[list[bool]]:
    return (before != after).any(-1).tolist()  # [steps][chains]


def test_step_i_sees_the_tokens_after_the_first_up_to_i_behind_its_anchor(tiny_eagle3, model):
    """Row t holds x_{t+1}, so x_0 enters through its features only; step i is fed x_{a+i}."""
    before = outputs(tiny_eagle3, model, BATCH.ids, BATCH.context)
    for document, length in enumerate(LENGTHS):
        for t in range(length):
            ids = BATCH.ids.clone()
            ids[STARTS[document] + t] = (ids[STARTS[document] + t] + 1) % MASK
            rule = [[n == document and 1 <= t <= anchor + step for n, anchor in CHAINS] for step in range(STEPS)]
            assert changed(before, outputs(tiny_eagle3, model, ids, BATCH.context)) == rule


def test_a_step_of_a_chain_is_seen_by_that_chain_alone_from_then_on(tiny_eagle3, model):
    """The diagonal keys: what one chain is fed at a step changes no other chain, though they share document and text."""
    before = outputs(tiny_eagle3, model, BATCH.ids, BATCH.context)
    for at in range(1, STEPS):
        for chain in range(len(CHAINS)):

            def nudge(step, e, at=at, chain=chain):
                return e + (step == at) * (torch.arange(len(CHAINS)) == chain)[:, None] * 1.0

            after = outputs(tiny_eagle3, model, BATCH.ids, BATCH.context, nudge)
            assert changed(before, after) == [[step >= at and c == chain for c in range(len(CHAINS))] for step in range(STEPS)]


def test_invalid_chains_do_not_touch_valid_ones_and_give_no_nan(tiny_eagle3, model):
    """Surplus chains of a fixed shape stand at anchor 1, also in a document of one token."""
    sample = random_features("0", 7, HIDDEN * 3, EAGLE3_LAYERS)
    batch = pack([*SAMPLES, sample], epoch=0)
    anchors = torch.tensor([*ANCHORS, [0, 0, 0]])
    layout = eagle3.chains(replace(LAYOUT, anchors=anchors, valid=anchors > 0, lengths=(*LENGTHS, 1)))
    assert layout.anchors[3].tolist() == [1, 1, 1] and not layout.valid[3].any()
    with torch.no_grad():
        hidden = tiny_eagle3.hidden(model, batch.ids, batch.context, layout, lambda step, h: h)
    assert torch.isfinite(hidden).all()
