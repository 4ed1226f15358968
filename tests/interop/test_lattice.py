"""The LiLiCorr heads of vLLM and SGLang, built on the CPU in their own environments, on our weights: their parameters, scores and walk.

Their draft models around it need a GPU: both serve LiLiCorr from runners whose kernels are Triton's. The backbone is DFlash's, which is
compared elsewhere.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.conftest import in_engine
from tests.unit.methods.test_lilicorr_definition import random_blocks, very_lively
from tests.unit.tiny import HIDDEN, B, make_lilicorr, write_target
from torchspec.acceptance.sampling import GREEDY, probabilities
from torchspec.methods import walk
from torchspec.target.frozen import FrozenTarget

TEMPERATURE = 0.7
ROOM = {"rtol": 1e-4, "atol": 1e-4}  # float32, scores of size 8; the sums run in another order


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    target = FrozenTarget.load(write_target(tmp_path_factory.mktemp("target") / "target"), torch.float32)
    return make_lilicorr(target, lilicorr_candidate_topk=8)


@torch.no_grad()
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engines_own_head_gives_our_scores_and_our_walk(method, engine, tmp_path):
    draft, blocks = very_lively(method), random_blocks()
    ours, given, found = draft.lilicorr.state_dict(), tmp_path / "given", tmp_path / "found"
    tables = {"embedding": method.target.embedding, "head": method.target.head, "states": blocks.states, "context": blocks.context}
    uniforms = torch.rand(2, B - 1, generator=torch.Generator().manual_seed(2))
    save_file({f"lilicorr.{name}": value for name, value in ours.items()} | tables | {"uniforms": uniforms}, given)
    config = method.config
    request = {
        "engine": engine, "given": str(given), "found": str(found), "settings": config.dflash_config, "width": HIDDEN, "block_size": B,
        "eps": config.rms_norm_eps, "temperature": TEMPERATURE,
    }  # fmt: skip
    shapes, theirs = in_engine(engine, "lattice_engine.py", request, tmp_path)["shapes"], load_file(found)
    assert shapes == {name: list(value.shape) for name, value in ours.items()}
    mine = method.walk(draft, blocks, method.whole_vocabulary)
    assert torch.equal(theirs["tokens"], mine.states)
    torch.testing.assert_close(theirs["scores"], mine.scores, **ROOM)
    if engine == "sglang":
        proposals, _ = walk.draft(method.walk(draft, blocks, method.whole_vocabulary), blocks.anchors, method.whole_vocabulary, GREEDY, 64)
        assert torch.equal(theirs["greedy"], proposals)
        before = blocks.anchors
        for slot, tokens in enumerate(theirs["drawn"].T):
            q = probabilities(mine.logits(before), TEMPERATURE).gather(1, theirs["tokens"][:, slot])
            torch.testing.assert_close(theirs["drawn_laws"][:, slot], q, **ROOM)
            before = tokens
