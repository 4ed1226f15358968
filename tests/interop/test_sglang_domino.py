"""SGLang's own rollout of a Domino block, run on the CPU on our weights, proposes what ours proposes.

The file that holds it imports PyTorch alone. Its check of the runtime (CUDA, bfloat16) is no part of it, and is not run.
"""

from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from torch import nn

from tests.interop.conftest import ROOT
from tests.unit.tiny import B, lively, make_domino, random_features, write_target
from torchspec.target.frozen import FrozenTarget

FILE = next((ROOT / ".interop" / "sglang" / "lib").glob("python*/site-packages/sglang/srt/speculative/domino_utils.py"))
ANCHORS = torch.arange(3, 14)


@pytest.fixture(scope="module")
def rollout():
    spec = spec_from_file_location("domino_utils", FILE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.domino_greedy_rollout


@torch.no_grad()
@pytest.mark.parametrize("shift_label", [True, False])
def test_domino(rollout, tmp_path, shift_label):
    target = FrozenTarget.load(write_target(tmp_path / "target"), torch.float32)
    method = make_domino(target, shift_label=shift_label)
    model, sample = lively(method.skeleton()), random_features("0011110001111111")
    blocks, _ = next(method._blocks(model, sample, ANCHORS))
    gru = nn.GRU(target.embedding.shape[1], 10, batch_first=True, bias=False)
    gru.load_state_dict({name: value for name, value in model.prefix_gru.named_parameters()})

    def proposed(shift: bool) -> torch.Tensor:
        return rollout(
            draft_hidden=blocks.rows, bonus_tokens=blocks.anchors, target_embedding=nn.Embedding.from_pretrained(target.embedding),
            lm_head_weight=target.head, prefix_gru=gru, embed_proj=model.embed_proj, vocab_size=len(target.head), shift_label=shift,
            candidate_pool_size=0, in_cuda_graph=False,
        )  # fmt: skip

    ours = method.propose(model, sample, ANCHORS)
    assert ours.shape == (len(ANCHORS), B - 1) and torch.equal(ours, proposed(shift_label))
    assert not torch.equal(ours, proposed(not shift_label))  # planted: the other layout
