"""vLLM loads our folder: its speculative answers are its plain answers, and it accepts what our own decoder says it will."""

import pytest
import torch

from tests.interop.conftest import MAX_NEW_TOKENS, in_engine
from torchspec.evaluate.acceptance import Acceptance, accepted_per_step
from torchspec.evaluate.decode import first_difference
from torchspec.records import Prompt


def vllm_answers(draft, method, target, prompts, draft_tokens, folder) -> dict:
    request = {
        "target": str(target.resolve()), "draft": draft and str(draft), "method": method, "draft_tokens": draft_tokens,
        "max_new_tokens": MAX_NEW_TOKENS, "prompts": [prompt.tolist() for prompt in prompts],
    }  # fmt: skip
    return in_engine("vllm", "vllm_decode.py", request, folder)


@pytest.fixture(scope="session")
def served(draft, method, target_folder, prompts, pair, tmp_path_factory) -> tuple[dict, dict]:
    folder = tmp_path_factory.mktemp("vllm")
    return tuple(vllm_answers(d, method, target_folder, prompts, pair.method.block_size - 1, folder) for d in (None, draft))


def test_vllm_speculative_text_is_its_plain_text_up_to_ties(served, method, pair, prompts):
    plain, speculative = served
    ties = 0
    for prompt, a, b in zip(prompts, plain["ids"], speculative["ids"], strict=True):
        difference = first_difference(pair.target, prompt, a, b)
        assert difference is None or difference.tie, difference
        ties += difference is not None
    same = len(prompts) - ties
    print(f"\nvLLM 0.32, {method}: {same} of {len(prompts)} speculative answers equal the plain ones, {ties} part at a tie of two logits")


def test_vllm_accepts_what_we_say_it_will(served, method, pair, prompts, ours):
    """Our offline walk over the very text that vLLM wrote, beside vLLM's own counters; our decode of the same prompts for comparison."""
    speculative, offline, decoded = served[1], Acceptance(pair.method.block_size), Acceptance(pair.method.block_size)
    for prompt, answer, mine in zip(prompts, speculative["ids"], ours, strict=True):
        ids = torch.cat((prompt, torch.tensor(answer)))
        features = pair.target.capture(Prompt(0, ids, torch.arange(len(ids)) >= len(prompt)))
        for accepted, length in accepted_per_step(pair.method, pair.model, features):
            offline.add_answer(accepted, length)
        decoded.add_answer(mine.accepted, len(mine.ids))
    tau = 1 + speculative["accepted"] / speculative["drafts"]
    rates = [count / speculative["drafts"] for count in speculative["per_position"]]
    mine = f"ours offline {offline.tau:.3f}, decoded {decoded.tau:.3f}"
    print(f"\nvLLM 0.32, {method}: τ {tau:.3f} in {speculative['drafts']:.0f} steps; {mine}")
    print("accepted per slot, vLLM " + " ".join(f"{r:.3f}" for r in rates) + "; ours " + " ".join(f"{r:.3f}" for r in offline.slot_rates))
    assert abs(tau / offline.tau - 1) < 0.03  # same text, another engine's rounding; vLLM also counts drafts beyond the end of an answer
