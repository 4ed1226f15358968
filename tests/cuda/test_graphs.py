"""How much a run compiles: each graph costs seconds at a GPU that waits, and past Dynamo's limit (nn/attention.py) the run ends."""

import torch
from torch._dynamo.utils import counters

from tests.cuda.draft_attention import QWEN3_8B, dflash, eagle3, layout
from tests.cuda.lowering import only_lowered

TRAINING = ((4, 1536), (4, 1700), (4, 1650), (4, 1290), (3, 1011), (1, 400), (4, 1800))  # documents, tokens
EVALUATION = ((256, 494), (77, 876), (8, 530), (5, 141), (1, 365), (2, 623), (200, 597), (40, 410))  # anchors, tokens


def compiled() -> int:
    return counters["stats"]["unique_graphs"]


def test_a_dflash_run_compiles_six(lowered, monkeypatch):
    """Training: the first batch, any length, any number of documents. Evaluation: many rows, one number of few rows, any of few.

    Of either kind the most general one is lowered; those of known sizes are in test_flex_lowers.py.
    """
    only_lowered(monkeypatch, 2, 5)
    for documents, tokens in TRAINING:
        dflash(layout(documents, 64, tokens, 16), QWEN3_8B, grad=True)
    with torch.inference_mode():
        for anchors, tokens in EVALUATION:
            dflash(layout(1, anchors, tokens, 16), QWEN3_8B, grad=False)
    dflash(layout(4, 64, 1777, 16), QWEN3_8B, grad=True)
    assert compiled() <= 6 < torch._dynamo.config.recompile_limit


def test_an_eagle3_run_compiles_seven(lowered, monkeypatch):
    """As above; the number of own rows is one of the lengths that change."""
    only_lowered(monkeypatch, 2, 6)
    for documents, tokens in TRAINING:
        eagle3(layout(documents, 128, tokens, 8), QWEN3_8B, range(7), grad=True)
    with torch.inference_mode():
        for anchors, tokens in EVALUATION:
            eagle3(layout(1, anchors, tokens, 8), QWEN3_8B, range(3), grad=False)
    eagle3(layout(4, 128, 1777, 8), QWEN3_8B, (0,), grad=True)
    assert compiled() <= 7 < torch._dynamo.config.recompile_limit
