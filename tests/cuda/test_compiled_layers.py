"""`training.compile`: a draft's layers, attention included, are whole graphs, and no batch after the first ones compiles again."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import Qwen3Config

from tests.cuda.draft_attention import layout
from tests.cuda.lowering import DEVICE
from torchspec.config import TrainingConfig
from torchspec.distributed import World, parallelise
from torchspec.methods.dflash import format as dflash_format
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.dflash.method import attention as dflash_attention
from torchspec.methods.dflash.model import DFlashDraft
from torchspec.methods.eagle3 import format as eagle3_format
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.eagle3.method import ChainAttention as eagle3_attention
from torchspec.methods.eagle3.model import Eagle3Draft
from torchspec.nn.attention import BlockLayout
from torchspec.target import FrozenTarget

TARGET = Qwen3Config(
    vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=2,
    head_dim=128,
)  # fmt: skip
BATCHES = ((4, 1536), (4, 1700), (4, 1290), (3, 1000), (4, 1800))  # documents, tokens
ANCHORS = 32


def rows(count: int, width: int) -> Tensor:
    return torch.empty(count, width, dtype=torch.bfloat16, device=DEVICE)


def compiled(model: torch.nn.Module):
    return parallelise(model, World(0, 1, DEVICE), TrainingConfig(compile=True), torch.bfloat16)


def test_dflash(lowered):
    config = dflash_format.draft_config(DFlashConfig(num_layers=2), TARGET, (TARGET.vocab_size, TARGET.hidden_size), 1000)
    with DEVICE:
        draft = compiled(DFlashDraft(config, torch.bfloat16))
    for documents, tokens in BATCHES:
        where = layout(documents, ANCHORS, tokens, 16)
        draft(rows(documents * ANCHORS * 16, 512), rows(tokens, 2 * 512), where.positions, dflash_attention(where)).sum().backward()
        print(documents, tokens, counters["stats"]["unique_graphs"], dict(counters["graph_break"]))


def test_eagle3(lowered):
    target = FrozenTarget(Path("none"), TARGET, *(rows(1024, 512),) * 2, rows(512, 1))
    with DEVICE:
        draft = compiled(Eagle3Draft(eagle3_format.draft_config(Eagle3Config(), target), torch.bfloat16))
    for documents, tokens in BATCHES:
        where = layout(documents, ANCHORS, tokens, 8)
        starts = torch.empty(documents * ANCHORS, dtype=torch.int64, device=DEVICE)
        follow = lambda step, hidden: rows(documents * ANCHORS, 512)
        draft(rows(tokens, 512), rows(tokens, 3 * 512), where.positions[0], starts, 7, follow, eagle3_attention(where)).sum().backward()
        print(documents, tokens, counters["stats"]["unique_graphs"], dict(counters["graph_break"]))
