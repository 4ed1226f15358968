"""`training.compile`: a draft's layers, attention included, are whole graphs, and few of them."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Qwen3Config

from tests.cuda.draft_attention import layout
from tests.cuda.lowering import DEVICE, only_lowered
from torchspec.methods.block import format as dflash_format
from torchspec.methods.block.attention import attention as dflash_attention
from torchspec.methods.block.model import BlockDraft
from torchspec.methods.config import FULL, SLIDING
from torchspec.methods.dflash.config import DFlashConfig
from torchspec.methods.eagle3 import format as eagle3_format
from torchspec.methods.eagle3.config import Eagle3Config
from torchspec.methods.eagle3.method import attention as eagle3_attention
from torchspec.methods.eagle3.model import Eagle3Draft
from torchspec.methods.peagle import format as peagle_format
from torchspec.methods.peagle.config import PeagleConfig
from torchspec.methods.peagle.model import PeagleDraft
from torchspec.nn.chain_attention import chain_attention
from torchspec.target.frozen import FrozenTarget
from torchspec.training.config import TrainingConfig
from torchspec.training.distributed import World, parallelise

WIDTH, VOCABULARY, ANCHORS = 512, 1024, 32
TARGET = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=8,
    num_key_value_heads=2, head_dim=128,
)  # fmt: skip
BATCHES = ((4, 1536), (4, 1700), (4, 1290), (3, 1000), (4, 1800))  # documents, tokens


def rows(count: int, width: int = WIDTH) -> Tensor:
    return torch.empty(count, width, dtype=torch.bfloat16, device=DEVICE)


def compiled(model: nn.Module):
    return parallelise(model, World(0, 1, DEVICE), TrainingConfig(compile=True), torch.bfloat16)


def breaks_and_graphs() -> tuple[dict, int]:
    return dict(counters["graph_break"]), counters["stats"]["unique_graphs"]


def test_dflash_layers(lowered, monkeypatch):
    """Two: of the first layer, whose input has no gradient, and of all others. Lengths are symbols; two lengths that happen to be equal,
    here slots and tiles, are taken for one symbol and cost two more. The second has the operators of the first and one gradient more.
    """
    only_lowered(monkeypatch, 1)
    options = DFlashConfig(num_layers=3, target_layer_ids=(1, 9), sliding_window=256, layer_types=(FULL, FULL, SLIDING))
    config = dflash_format.draft_config(options, TARGET, (VOCABULARY, WIDTH), VOCABULARY - 1)
    with DEVICE:
        draft = compiled(BlockDraft(config, torch.bfloat16))
    for documents, tokens in BATCHES:
        where = layout(documents, ANCHORS, tokens, 16)
        out = draft(
            rows(documents * ANCHORS * 16), rows(tokens, 2 * WIDTH), where.positions, dflash_attention(where, dflash_format.sights(config))
        )
        out.sum().backward()
    breaks, graphs = breaks_and_graphs()
    assert breaks == {} and 2 <= graphs <= 4


def test_eagle3_layer(lowered, monkeypatch):
    """One for each of three steps. The third has the operators of the others and more own rows."""
    only_lowered(monkeypatch, 2)
    target = FrozenTarget(Path("none"), TARGET, rows(VOCABULARY), rows(VOCABULARY), torch.nn.RMSNorm(WIDTH))
    with DEVICE:
        draft = compiled(Eagle3Draft(eagle3_format.draft_config(Eagle3Config(), target), torch.bfloat16))
    for documents, tokens in BATCHES[:2]:
        where = layout(documents, ANCHORS, tokens, 4)
        chains = documents * ANCHORS
        starts, text = torch.empty(chains, dtype=torch.int64, device=DEVICE), rows(chains)
        steps = (3, lambda step, hidden, text=text: text, eagle3_attention(where, 3))
        out = draft(rows(tokens), rows(tokens, 3 * WIDTH), where.positions[0], starts, *steps)
        assert breaks_and_graphs()[0] == {}
        out.sum().backward()
    breaks, graphs = breaks_and_graphs()
    assert breaks == {} and graphs == 3


def test_peagle_layers(lowered, monkeypatch):
    """Two: of EAGLE-3's layer, and of all others. Their attention is lowered in test_flex_lowers.py, their products are DFlash's."""
    only_lowered(monkeypatch)
    target = FrozenTarget(Path("none"), TARGET, rows(VOCABULARY), rows(VOCABULARY), torch.nn.RMSNorm(WIDTH))
    with DEVICE:
        options = PeagleConfig(num_layers=3, target_layer_ids=(1, 9))
        draft = compiled(PeagleDraft(peagle_format.draft_config(options, target, 0), torch.bfloat16))
    for documents, tokens in BATCHES[:3]:
        where = tuple(layout(documents, ANCHORS, tokens, depths) for depths in (1, 3))
        positions = where[0].positions[0], torch.cat([group.positions[1] for group in where])
        asking, attend = torch.arange(documents * ANCHORS * 5, device=DEVICE), chain_attention(where[0].lengths, where, DEVICE)
        out = draft(rows(tokens), rows(1)[0], rows(tokens, 2 * WIDTH), positions, asking, lambda _layer, attend=attend: attend)
        out.sum().backward()
    breaks, graphs = breaks_and_graphs()
    assert breaks == {} and graphs == 2
