"""Every draft method on the tiny target, for the tests of what holds for all of them. A new method is one more entry."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from tests.unit.tiny import (
    EAGLE3_LAYERS,
    LAYERS,
    B,
    lively,
    make_dflash2,
    make_domino,
    make_dspark,
    make_eagle3,
    make_lilicorr,
    make_method,
    make_peagle,
    make_xpress,
)
from torchspec.capture.hf import HFCapture
from torchspec.methods.base import Method
from torchspec.methods.block import attention as block_attention
from torchspec.methods.block import method as block
from torchspec.methods.block.method import BlockMethod
from torchspec.methods.eagle3 import base as eagle
from torchspec.methods.eagle3 import method as eagle3
from torchspec.methods.peagle import method as peagle
from torchspec.nn import chain_attention
from torchspec.nn.attention import BlockLayout
from torchspec.records import Batch
from torchspec.target.frozen import FrozenTarget

PRUNED = torch.arange(0, 64, 3)
SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "intermediate_size": 40, "rope": "plain"}
WINDOW = 5  # longer than a block of 4, shorter than the texts: its edge lies in the context
CHAINS = [[(eagle, "PROPOSAL_CHAINS", chains)] for chains in (256, 7)]
BLOCKS = [[(block, "PROPOSAL_BLOCKS", blocks)] for blocks in (256, 7, 1)]


def blocks_of_masks(method: BlockMethod, model: torch.nn.Module, batch: Batch, layout: BlockLayout) -> torch.Tensor:
    return model(*method.inputs(batch.ids, batch.context, layout)).view(layout.anchors.numel(), method.rows, -1)


def chains_of_text(method: eagle3.Eagle3, model: torch.nn.Module, batch: Batch, layout: BlockLayout) -> torch.Tensor:
    """Fed with the text itself, whatever the draft would propose."""
    starts = torch.tensor([0, *itertools.accumulate(layout.lengths)][:-1])[:, None]
    places = (layout.anchors + starts).flatten()[:, None] + torch.arange(B - 1)
    labels = batch.ids[places]
    return method.hidden(model, batch.ids, batch.context, layout, lambda step, _: method.embed(labels[:, step])).transpose(0, 1)


def rows_at_once(method: peagle.Peagle, model: torch.nn.Module, batch: Batch, layout: BlockLayout) -> torch.Tensor:
    return method.hidden(model, batch.ids, batch.context, (layout,)).view(layout.anchors.numel(), B - 1, -1)


@dataclass(frozen=True)
class Case:
    make: Callable[[FrozenTarget], Method]
    layers: tuple[int, ...]  # that the target gives; the draft reads all of LAYERS
    parts: list[list[tuple]]  # settings under which a document is worked through in parts: (module, name, value)
    variety: int = 8  # a draft that always says the same would prove little: it says more different tokens than these
    vocabulary: torch.Tensor = torch.arange(64)  # what it can propose
    module: ModuleType = eagle3  # where it takes its attention from
    states: Callable[[Method, torch.nn.Module, Batch, BlockLayout], torch.Tensor] = chains_of_text  # hidden ones [blocks, rows, H]
    windows: tuple[int | None, ...] = (None,)  # of each layer; one that slides is causal
    candidates: bool = False  # a slot proposes from the best few tokens of the vocabulary
    of_context: int = 0  # first rows of a block that are rows of the context, which its own attention has no part in


def blocks(make: Callable[[FrozenTarget], Method], layers: tuple[int, ...] = EAGLE3_LAYERS, **settings) -> Case:
    return Case(make, layers, BLOCKS, module=block_attention, states=blocks_of_masks, **settings)


def at_once(make: Callable[[FrozenTarget], Method], **settings) -> Case:
    return Case(make, EAGLE3_LAYERS, CHAINS, module=chain_attention, states=rows_at_once, of_context=1, **settings)


CASES = {
    "dflash": blocks(make_method, LAYERS, variety=10),
    "dflash, sliding": blocks(lambda target: make_method(target, sliding_window=WINDOW, **SHAPE), LAYERS, windows=(WINDOW, WINDOW)),
    "dflash, one layer slides": blocks(
        lambda target: make_method(target, sliding_window=3, layer_types=("full_attention", "sliding_attention")),
        LAYERS,
        windows=(None, 3),
    ),
    "dflash, taught": blocks(lambda target: make_method(target, loss={"ce": 0.1, "tv": 1.8})),
    "dflash2": blocks(make_dflash2, candidates=True),
    "dflash2, sliding": blocks(
        lambda target: make_dflash2(target, sliding_window=WINDOW, conv_kernel_size=3, selector_loss={"ce": 1.0}),
        LAYERS,
        windows=(WINDOW, WINDOW),
        candidates=True,
    ),
    "dspark": blocks(make_dspark),
    "dspark, rnn, bonus anchor": blocks(
        lambda target: make_dspark(target, markov_head_type="rnn", sample_from_anchor=False, confidence_loss=0.0)
    ),
    "domino": blocks(make_domino, LAYERS),
    "domino, DFlash's rows": blocks(lambda target: make_domino(target, shift_label=False, pure_draft_prefix_len=0), LAYERS),
    "lilicorr": blocks(make_lilicorr, candidates=True),
    "xpress": blocks(make_xpress),
    "xpress, a shortlist": blocks(
        lambda target: make_xpress(target, loss={"ce": 1.0}, xpress_num_passes=3, xpress_topc=9),
        LAYERS,
        variety=6,
        candidates=True,
    ),
    "eagle3": Case(make_eagle3, EAGLE3_LAYERS, CHAINS),
    "eagle3, own shape": Case(lambda target: make_eagle3(target, **SHAPE), EAGLE3_LAYERS, CHAINS),
    "EAGLE-3.1": Case(lambda target: make_eagle3(target, fc_norm=True, norm_output=True), EAGLE3_LAYERS, CHAINS),
    "eagle3, other norms": Case(lambda target: make_eagle3(target, norm_before_residual=True, norm_before_fc=True), EAGLE3_LAYERS, CHAINS),
    "eagle3, pruned": Case(lambda target: make_eagle3(target, PRUNED), EAGLE3_LAYERS, CHAINS, vocabulary=PRUNED),
    "peagle": at_once(make_peagle),
    "peagle, own shape, all norms": at_once(
        lambda target: make_peagle(target, **SHAPE, num_layers=3, norm_before_residual=True, norm_before_fc=True, fc_norm=True)
    ),
    "peagle, pruned, one layer": at_once(lambda target: make_peagle(target, PRUNED, num_layers=1), vocabulary=PRUNED),
}


def lively_draft(method: Method) -> torch.nn.Module:
    model = lively(method.skeleton())
    if method.config.to_dict().get("draft_vocab_size") is not None:
        model.keep(method.vocabulary)
    return model


def oracle_of(case: Case, tiny_oracle: HFCapture, eagle3_oracle: HFCapture) -> HFCapture:
    return next(oracle for oracle in (tiny_oracle, eagle3_oracle) if oracle.layer_ids == case.layers)
