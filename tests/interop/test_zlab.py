"""The PyPI package `dflash` loads our folder and decodes as we do: same tokens, same accepted drafts per step."""

import time

import pytest
import torch

from tests.interop.conftest import ROOT
from tests.unit.tiny import NEVER, B, lively, make_dflash2, make_method, random_prompt, write_target
from torchspec.acceptance.sampling import GREEDY
from torchspec.decode.pair import load_pair
from torchspec.decode.sequence import plain_decode, speculative_decode, stop_ids
from torchspec.export.hf import serving_config, serving_tensors, write_draft
from torchspec.target.frozen import FrozenTarget

ZLAB = ROOT / ".interop" / "zlab"


@pytest.fixture
def zlab(monkeypatch):
    monkeypatch.syspath_prepend(str(ZLAB))
    from dflash import model

    monkeypatch.setattr(model, "_cuda_time", time.perf_counter)  # its statistics need CUDA only for the clock
    return model


WINDOWS = {
    "whole": {}, "all slide": {"sliding_window": 6}, "shorter than a block": {"sliding_window": 2},
    "one slides": {"sliding_window": 6, "layer_types": ("full_attention", "sliding_attention")},
    "own shape": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "intermediate_size": 40, "rope": "plain"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> FrozenTarget:
    return FrozenTarget.load(write_target(tmp_path_factory.mktemp("zlab") / "target"), torch.float32)


@pytest.mark.parametrize("name", sorted(WINDOWS.keys() - {"shorter than a block"}))  # of which, by chance, nothing is ever accepted
def test_zlab_decoder_gives_our_acceptance_for_layers_that_slide_and_other_shapes(zlab, tiny, tmp_path, name):
    """A random draft of a random target, whose proposals are accepted by chance: lively weights, 60 tokens of four prompts."""
    method = make_method(tiny, **WINDOWS[name])
    model = lively(method.skeleton())
    folder = write_draft(tmp_path / "draft", serving_tensors(model.state_dict(), "float32"), serving_config(method.config, "float32"), {})
    pair = load_pair(folder, str(tiny.folder), "float32", "cpu", False)
    theirs, drafter = zlab.DFlashDraftModel.from_pretrained(folder, dtype=torch.float32).eval(), pair.method.drafter(pair.model)
    accepted = 0
    for seed in range(4):
        prompt = random_prompt(seed, 9 + seed)
        answer = speculative_decode(pair.target, drafter, prompt, 60, NEVER)
        reference = zlab.dflash_generate(theirs, pair.target.model, prompt[None], 60, None, return_stats=True)
        assert reference.output_ids[0, len(prompt) :].tolist() == answer.ids == plain_decode(pair.target, prompt, 60, NEVER).ids
        full = [i for i in range(len(answer.accepted)) if sum(a + 1 for a in answer.accepted[: i + 1]) + B <= 60]
        assert [reference.acceptance_lengths[i] for i in full] == [answer.accepted[i] + 1 for i in full]
        accepted += sum(answer.accepted[i] for i in full)
    assert accepted > 0  # the comparison is not vacuous


@pytest.mark.parametrize("window", [None, 6], ids=["whole", "all slide"])
def test_zlab_decoder_gives_our_acceptance_for_dflash2(zlab, tiny, tmp_path, window):
    """Its convolutions and its walk over candidates: every step's proposals are ours, and so is every accepted one."""
    method = make_dflash2(tiny, sliding_window=window, conv_kernel_size=3)
    model = lively(method.skeleton())
    folder = write_draft(tmp_path / "draft", serving_tensors(model.state_dict(), "float32"), serving_config(method.config, "float32"), {})
    pair = load_pair(folder, str(tiny.folder), "float32", "cpu", False)
    theirs, drafter = zlab.DFlash2DraftModel.from_pretrained(folder, dtype=torch.float32).eval(), pair.method.drafter(pair.model)
    assert theirs.candidate_selector.successor_codebook.weight.equal(model.candidate_selector.successor_codebook)
    proposed, drafted, propose, said = [], [], theirs.propose, drafter.propose
    theirs.propose = lambda *asked: proposed.append(propose(*asked)) or proposed[-1]
    drafter.propose = lambda *asked: drafted.append(said(*asked)) or drafted[-1]
    for seed in range(2):
        prompt = random_prompt(seed, 9 + seed)
        answer = speculative_decode(pair.target, drafter, prompt, 30, NEVER)
        reference = zlab.dflash_generate(theirs, pair.target.model, prompt[None], 30, None, return_stats=True)
        assert reference.output_ids[0, len(prompt) :].tolist() == answer.ids
        full = [i for i in range(len(answer.accepted)) if sum(a + 1 for a in answer.accepted[: i + 1]) + B <= 30]
        assert [reference.acceptance_lengths[i] for i in full] == [answer.accepted[i] + 1 for i in full]
        assert [proposed[i][0][0].tolist() for i in full] == [drafted[i][0].tolist() for i in full] and len(full) > 10
        proposed.clear()
        drafted.clear()


@torch.no_grad()
@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_zlab_draft_computes_our_blocks(zlab, tiny, tmp_path, options):
    """Hidden states of a block after 20 tokens, in one piece and with a cache that grew; planted: a window one longer differs."""
    method = make_method(tiny, **options)
    model = lively(method.skeleton())
    folder = write_draft(tmp_path / "draft", serving_tensors(model.state_dict(), "float32"), serving_config(method.config, "float32"), {})
    theirs = zlab.DFlashDraftModel.from_pretrained(folder, dtype=torch.float32).eval()
    context, kept = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)), []
    drafter, cache = method.drafter(model), zlab._make_cache(theirs.config)
    hook = model.norm.register_forward_hook(lambda _m, _i, out: kept.append(out))
    block = torch.nn.functional.embedding(torch.tensor([5, *[method.mask_token_id] * (B - 1)]), tiny.embedding)[None]
    for start, end in ((0, 9), (9, 11), (11, 20)):
        drafter.extend(torch.zeros(end - start, dtype=torch.int64), context[start:end])
        drafter.propose(5, GREEDY)
        positions = torch.arange(start, end + B)[None]
        found = theirs(positions, noise_embedding=block, target_hidden=context[None, start:end], past_key_values=cache, use_cache=True)
        zlab._crop_to(cache, end)
        torch.testing.assert_close(found[0], kept[-1], rtol=1e-4, atol=1e-4)
    hook.remove()
    for layer in theirs.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window += 1
            planted = theirs(torch.arange(20 + B)[None], noise_embedding=block, target_hidden=context[None])
            assert (planted[0] - kept[-1]).abs().max() > 0.01


@pytest.mark.parametrize("method", ["dflash"], indirect=True)
def test_zlab_decoder_gives_our_tokens_and_our_acceptance(zlab, draft, target_folder, prompts):
    pair = load_pair(draft, str(target_folder), "float32", "cpu", False)  # float32: no ties, so every count must agree
    theirs, drafter, stop = (
        zlab.DFlashDraftModel.from_pretrained(draft, dtype=torch.float32).eval(),
        pair.method.drafter(pair.model),
        stop_ids(pair.target),
    )
    steps = 0
    for prompt in prompts[:2]:
        answer = speculative_decode(pair.target, drafter, prompt, 64, stop)
        reference = zlab.dflash_generate(theirs, pair.target.model, prompt[None], 64, sorted(stop), return_stats=True)
        assert reference.output_ids[0, len(prompt) :].tolist() == answer.ids
        # near the cap the package shortens its block, which changes what a bidirectional draft proposes, and the last step is cut at
        # the stop token: those are left out
        full = [i for i in range(len(answer.accepted) - 1) if sum(a + 1 for a in answer.accepted[: i + 1]) + pair.method.block_size <= 64]
        assert [reference.acceptance_lengths[i] for i in full] == [answer.accepted[i] + 1 for i in full]
        steps += len(full)
    print(f"\nz-lab dflash 0.1.0: {steps} decoding steps, tokens and accepted drafts equal ours in every one")
