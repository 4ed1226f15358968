"""Every draft method on the tiny target, for the tests of what holds for all of them. A new method is one more entry."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from tests.unit.tiny import EAGLE3_LAYERS, LAYERS, B, lively, make_eagle3, make_method, make_peagle
from torchspec.acceptance import sampling
from torchspec.capture.hf import HFCapture
from torchspec.methods.base import Method
from torchspec.methods.dflash import method as dflash
from torchspec.methods.eagle3 import method as eagle3
from torchspec.methods.peagle import method as peagle
from torchspec.nn import chain_attention
from torchspec.nn.attention import BlockLayout
from torchspec.records import Batch
from torchspec.target.frozen import FrozenTarget

PRUNED = torch.arange(0, 64, 3)
SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "intermediate_size": 40, "rope": "plain"}
WINDOW = 5  # longer than a block of 4, shorter than the texts: its edge lies in the context
CHAINS = [[(eagle3, "PROPOSAL_CHAINS", chains)] for chains in (256, 7)]
BLOCKS = [
    [(dflash, "PROPOSAL_BLOCKS", blocks), (dflash, "PROPOSAL_ROWS", rows), (sampling, "HEAD_ROWS", rows)]
    for blocks, rows in itertools.product((256, 7, 1), (256, 5))
]


def blocks_of_masks(method: dflash.DFlash, model: torch.nn.Module, batch: Batch, layout: BlockLayout) -> torch.Tensor:
    return model(*method.inputs(batch.ids, batch.context, layout)).view(layout.anchors.numel(), B, -1)


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
    of_context: int = 0  # first rows of a block that are rows of the context, which its own attention has no part in


def at_once(make: Callable[[FrozenTarget], Method], **settings) -> Case:
    parts = [[(peagle, "PROPOSAL_CHAINS", chains)] for chains in (256, 7)]
    return Case(make, EAGLE3_LAYERS, parts, module=chain_attention, states=rows_at_once, of_context=1, **settings)


CASES = {
    "dflash": Case(make_method, LAYERS, BLOCKS, variety=10, module=dflash, states=blocks_of_masks),
    "dflash, sliding": Case(
        lambda target: make_method(target, sliding_window=WINDOW, **SHAPE),
        LAYERS,
        BLOCKS,
        module=dflash,
        states=blocks_of_masks,
        windows=(WINDOW, WINDOW),
    ),  # fmt: skip
    "dflash, one layer slides": Case(
        lambda target: make_method(target, sliding_window=3, layer_types=("full_attention", "sliding_attention")),
        LAYERS,
        BLOCKS,
        module=dflash,
        states=blocks_of_masks,
        windows=(None, 3),
    ),  # fmt: skip
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
