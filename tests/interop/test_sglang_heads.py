"""SGLang's own heads of DSpark, in a process of its environment: each slot's correction and confidence are ours, from the same tensors."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.conftest import ROOT
from torchspec.methods.dspark.head import HEADS, ConfidenceHead
from torchspec.methods.dspark.walk import MarkovWalk

PYTHON, STAND_INS = ROOT / ".interop" / "sglang" / "bin" / "python", ROOT / "tests" / "interop" / "sglang_cpu"
V, H, R, SLOTS, BLOCKS = 50, 12, 5, 4, 3
THEIRS = f"""
import sys, torch
from safetensors.torch import load_file, save_file
from sglang.srt.models.dspark import DSparkConfidenceHead, GatedMarkovHead, RNNHead, VanillaMarkov
given, out = load_file(sys.argv[1]), {{}}
size = dict(vocab_size={V}, markov_rank={R})
heads = dict(vanilla=VanillaMarkov(**size), gated=GatedMarkovHead(**size, hidden_size={H}), rnn=RNNHead(**size, hidden_size={H}))
confidence = DSparkConfidenceHead(hidden_size={H}, markov_rank={R})
load = lambda module, prefix: module.load_state_dict({{k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}})
load(confidence, 'confidence_head.')
with torch.no_grad():
    for kind, head in heads.items():
        load(head, kind + '.')
        state, steps = head.init_state(given['states'][:, 0]), []
        for slot in range({SLOTS}):
            before, states = given['before'][:, slot], given['states'][:, slot]
            bias, state = head.step_bias(before, hidden_states=states, state=state)
            steps.append(bias)
        out[kind] = torch.stack(steps, 1)
    tokens = dict(anchor_tokens=given['before'][:, 0], draft_tokens=given['drafts'], markov_head=heads['rnn'])
    out['confidence'] = confidence.predict(given['states'], **tokens)[1]
save_file(out, sys.argv[2])
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[dict, dict]:
    """What both are given, and what theirs answers."""
    torch.manual_seed(0)
    folder, given = tmp_path_factory.mktemp("sglang"), {}
    modules = {kind: head(V, V, R, H) for kind, head in HEADS.items()} | {"confidence_head": ConfidenceHead(H, R)}
    for prefix, module in modules.items():
        given |= {f"{prefix}.{name}": torch.randn_like(value) for name, value in module.state_dict().items()}
    given["before"], given["states"] = torch.randint(V, (BLOCKS, SLOTS)), torch.randn(BLOCKS, SLOTS, H)
    given["drafts"] = torch.cat((given["before"][:, 1:], torch.zeros(BLOCKS, 1, dtype=torch.int64)), 1)
    save_file(given, folder / "given.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(STAND_INS), "CUDA_VISIBLE_DEVICES": ""}
    command = [PYTHON, "-c", THEIRS, folder / "given.safetensors", folder / "out.safetensors"]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return given, load_file(folder / "out.safetensors")


class Draft(torch.nn.Module):
    def __init__(self, kind: str, given: dict):
        super().__init__()
        self.markov_head, self.confidence_head = HEADS[kind](V, V, R, H), ConfidenceHead(H, R)
        for prefix, module in ((f"{kind}.", self.markov_head), ("confidence_head.", self.confidence_head)):
            module.load_state_dict({name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)})


@torch.no_grad()
@pytest.mark.parametrize("kind", HEADS)
def test_a_slots_correction_and_confidence(both, kind):
    given, theirs = both
    draft = Draft(kind, given)
    walk = MarkovWalk(given["states"], lambda states: states.new_zeros(len(states), V), draft)
    for slot in range(SLOTS):
        before = given["before"][:, slot]
        if kind == "rnn":  # theirs reads the token before from the head that drafts
            torch.testing.assert_close(walk.confidence(before), theirs["confidence"][:, slot], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(walk.logits(before), theirs[kind][:, slot], rtol=1e-5, atol=1e-5)
    planted = draft.markov_head.factors(draft.markov_head.markov_w1(given["drafts"]), given["states"])  # a token late
    assert not torch.allclose(draft.markov_head.markov_w2(planted), theirs[kind], rtol=1e-2)
