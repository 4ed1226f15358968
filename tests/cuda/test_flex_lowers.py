"""FlexAttention has a kernel for the shapes of recipes and evaluations. Without one Inductor raises, on the first step of a real run."""

import pytest
import torch

from tests.cuda.draft_attention import GROUPS_OF_8, QWEN3_8B, SMOLLM2_135M, WITHOUT_GROUPS, dflash, eagle3, layout, peagle
from tests.cuda.h100 import SHARED_MEMORY
from torchspec.nn.attention import WHOLE, Sight

GROUPS = {"1": WITHOUT_GROUPS, "3": SMOLLM2_135M, "4": QWEN3_8B, "8": GROUPS_OF_8}  # query heads per kv head


@pytest.mark.parametrize(
    ("heads", "sight"),
    [(WITHOUT_GROUPS, WHOLE), (GROUPS_OF_8, WHOLE), (QWEN3_8B, Sight(512, causal=True))],
    ids=["group1", "group8", "group4, sliding"],
)
def test_blocks_in_training(lowered, heads, sight):
    """The other two groups: test_kernels_fit_an_h100."""
    out = dflash(layout(2, 40, 1291, 16), heads, True, sight)
    assert out.shape == (2 * 40 * 16, heads[0], heads[2])


@pytest.mark.parametrize(
    ("heads", "blocks"),
    [*((heads, 1) for heads in GROUPS.values()), (QWEN3_8B, 3), (QWEN3_8B, 7)],
    ids=[*(f"group{name}, 1 block" for name in GROUPS), "group4, 3 blocks", "group4, 7 blocks"],
)
def test_the_last_blocks_of_an_answer(lowered, heads, blocks):
    """Fewer than 128 rows, padded to 16, 64 and 128: PyTorch by itself takes its decoding kernel, where most groups do not fit."""
    with torch.inference_mode():
        assert dflash(layout(1, blocks, 317, 16), heads, grad=False).shape == (blocks * 16, heads[0], heads[2])


@pytest.mark.parametrize(("heads", "step"), [(QWEN3_8B, 0), (QWEN3_8B, 6), (SMOLLM2_135M, 6)])
def test_chains_in_training(lowered, heads, step):
    (out,) = eagle3(layout(2, 96, 1291, 8), heads, (step,), grad=True)
    assert out.shape == (2 * 96, heads[0], heads[2])


@pytest.mark.parametrize("heads", (QWEN3_8B, SMOLLM2_135M))
@pytest.mark.parametrize(("chains", "step"), ((1, 0), (40, 3)))
def test_chains_of_an_answer(lowered, heads, chains, step):
    with torch.inference_mode():
        (out,) = eagle3(layout(1, chains, 317, 8), heads, (step,), grad=False)
    assert out.shape == (chains, heads[0], heads[2])


@pytest.mark.parametrize(("heads", "grad"), [(QWEN3_8B, True), (SMOLLM2_135M, False)], ids=["training", "an answer"])
def test_chains_that_propose_at_once(lowered, heads, grad):
    where = [layout(2, 24, 1291, depths) for depths in (1, 2, 7)] if grad else [layout(1, 3, 317, 7)]
    with torch.inference_mode(not grad):
        out = peagle(where, heads, grad)
    assert out.shape == (1291 + 2 * 24 * 10 if grad else 317 + 3 * 7, heads[0], heads[2])


@pytest.mark.parametrize("heads", (QWEN3_8B, SMOLLM2_135M))
def test_kernels_fit_an_h100(kernels, heads):
    """ptxas accepts them for sm_90, and one program has the shared memory that they ask for."""
    out = dflash(layout(2, 40, 1291, 16), heads, grad=True)
    assert out.shape == (2 * 40 * 16, heads[0], heads[2])
    names = " ".join(kernel.metadata.name for kernel in kernels)
    assert "tem_fused_flex_attention_0" in names and "tem_fused_flex_attention_backward" in names
    for kernel in kernels:
        assert kernel.metadata.target.arch == 90 and kernel.asm["cubin"].startswith(b"\x7fELF"), kernel.metadata.name
        assert kernel.metadata.shared <= SHARED_MEMORY, kernel.metadata.name
