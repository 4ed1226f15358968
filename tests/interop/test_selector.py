"""DFlash2 of vLLM and SGLang, built on the CPU in their own environments, from our exported folder.

vLLM's is its whole draft class but for the attention of a server; its runner for such drafts needs Triton, and the other one refuses them.
SGLang's draft wants a server's parallel state around it, so its parts are built: convolution, selector, walk.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.conftest import in_engine
from tests.unit.tiny import HIDDEN, LAYERS, MASK, B, lively, make_dflash2, write_target
from torchspec.acceptance.sampling import GREEDY
from torchspec.export.hf import serving_config, serving_tensors, write_draft
from torchspec.methods.block.blocks import Blocks
from torchspec.methods.dflash2.model import convolve
from torchspec.target.frozen import FrozenTarget

ANCHOR, TOKEN = 20, 5
ROOM = {"rtol": 1e-4, "atol": 1e-4}  # float32; the sums run in another order


@torch.no_grad()
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engines_own_draft_gives_our_scores_and_our_walk(engine, tmp_path):
    target = FrozenTarget.load(write_target(tmp_path / "target"), torch.float32)
    method = make_dflash2(target, conv_kernel_size=3)
    model, g = lively(method.skeleton()), torch.Generator().manual_seed(0)
    draft = write_draft(tmp_path / "draft", serving_tensors(model.state_dict(), "float32"), serving_config(method.config, "float32"), {})
    features, rows = torch.randn(ANCHOR, HIDDEN * len(LAYERS), generator=g), torch.randn(2 * B, HIDDEN, generator=g)
    states, drafter = [], method.drafter(model)
    hook = model.norm.register_forward_hook(lambda _m, _i, out: states.append(out[1:]))
    drafter.extend(torch.zeros(ANCHOR, dtype=torch.int64), features)
    proposed = drafter.propose(TOKEN, GREEDY)[0]
    hook.remove()
    given = {"features": features, "block": torch.tensor([TOKEN, *[MASK] * (B - 1)]), "rows": rows, "states": states[0]}
    given |= {"embedding": target.embedding, "head": target.head}
    save_file({name: x.contiguous() for name, x in given.items()}, tmp_path / "given")
    names = {"target": str(target.folder), "draft": str(draft), "given": str(tmp_path / "given"), "found": str(tmp_path / "found")}
    shapes = in_engine(engine, "selector_engine.py", {"engine": engine, **names}, tmp_path)["shapes"]
    theirs, ours = load_file(tmp_path / "found"), {name: list(value.shape) for name, value in model.named_parameters()}
    assert shapes and {name.removeprefix("model."): shape for name, shape in shapes.items()}.items() <= ours.items()

    if engine == "vllm":
        torch.testing.assert_close(theirs["states"], states[0], **ROOM)
        assert len([name for name in shapes if "conv" in name]) == 8
    else:
        conv = model.layers[0].attention_conv
        own = conv.kernel_projection(rows).unflatten(1, (2, 3, -1))
        torch.testing.assert_close(theirs["convolved"], conv(rows, torch.nn.functional.silu), **ROOM)
        across = convolve(rows, own[:, 0], conv.base_kernel[0], 2 * B)  # planted: from one block into the next
        across = convolve(torch.nn.functional.silu(across), own[:, 1], conv.base_kernel[1], 2 * B)
        assert not torch.allclose(across, theirs["convolved"], rtol=1e-2)
        assert torch.equal(theirs["walked"], proposed)
    block = Blocks(
        states[0][None], torch.tensor([TOKEN]), states[0][None], c=torch.zeros(1, HIDDEN), last=torch.zeros(1, dtype=torch.int64)
    )
    walk, before, place = method.walk(model, block, method.whole_vocabulary), TOKEN, 0
    for slot in range(B - 1):
        candidates, scores = theirs["candidates"][slot], theirs["scores"][slot, place]
        torch.testing.assert_close(walk.logits(torch.tensor([before]))[0][candidates], scores, **ROOM)
        place = int(scores.argmax())
        before = int(candidates[place])
        assert before == proposed[slot]
