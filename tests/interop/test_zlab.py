"""The PyPI package `dflash` loads our folder and decodes as we do: same tokens, same accepted drafts per step."""

import sys
import time

import pytest
import torch

from tests.interop.conftest import ROOT
from torchspec.decode.pair import load_pair
from torchspec.decode.sequence import speculative_decode, stop_ids

ZLAB = ROOT / ".interop" / "zlab"


@pytest.mark.parametrize("method", ["dflash"], indirect=True)
def test_zlab_decoder_gives_our_tokens_and_our_acceptance(draft, target_folder, prompts, monkeypatch):
    sys.path.insert(0, str(ZLAB))
    from dflash import model as zlab

    monkeypatch.setattr(zlab, "_cuda_time", time.perf_counter)  # its statistics need CUDA only for the clock
    pair = load_pair(draft, str(target_folder), "float32", "cpu", False)  # float32: no ties, so every count must agree
    theirs, drafter, stop = (
        zlab.DFlashDraftModel.from_pretrained(draft, dtype=torch.float32).eval(),
        pair.method.drafter(pair.model),
        stop_ids(pair.target),
    )
    steps = 0
    for prompt in prompts[:3]:
        answer = speculative_decode(pair.target, drafter, prompt, 64, stop)
        reference = zlab.dflash_generate(theirs, pair.target.model, prompt[None], 64, sorted(stop), return_stats=True)
        assert reference.output_ids[0, len(prompt) :].tolist() == answer.ids
        # near the cap the package shortens its block, which changes what a bidirectional draft proposes, and the last step is cut at
        # the stop token: those are left out
        full = [i for i in range(len(answer.accepted) - 1) if sum(a + 1 for a in answer.accepted[: i + 1]) + pair.method.block_size <= 64]
        assert [reference.acceptance_lengths[i] for i in full] == [answer.accepted[i] + 1 for i in full]
        steps += len(full)
    print(f"\nz-lab dflash 0.1.0: {steps} decoding steps, tokens and accepted drafts equal ours in every one")
