"""Real vLLM, started by `torchspec regenerate`, writes what the target itself would write."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tests.interop.conftest import ENGINES, environment
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.chat.format import ChatFormat
from torchspec.data.dataset import open_or_prepare
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.regenerate.answering import Engine, open_answering
from torchspec.regenerate.run import Wanted, regenerate
from torchspec.regenerate.share import on_policy_share
from torchspec.regenerate.turns import Sampling, Turns

PROMPTS, TOKENS, IN_FLIGHT = 12, 48, 4
SMALL = "--enforce-eager --max-model-len 1024 --max-num-seqs 4"  # for two cores
LEAST_SHARE = 0.98  # another engine's roundings in bfloat16


@pytest.fixture(scope="module")
def answers(target_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("regenerate") / "out.jsonl"
    turns = Turns(ChatFormat.load(target_folder, None, False), Sampling(TOKENS, (0.0,), 0), max_length=1024)
    engine = Engine("vllm", [], IN_FLIGHT, True, 1, str(ENGINES["vllm"]), SMALL, None)
    place = Place(resolve_dtype("bfloat16"), resolve_device("cpu"), False)
    prompts = str(Path(str(files("torchspec.demo"))) / "prompts_heldout.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment("vllm") | {"HOME": str(out.parent)}).items():
            patch.setenv(name, value)
        with open_answering(turns, engine, place, out) as servers:
            regenerate([prompts], out, servers, Wanted(limit=PROMPTS))
    return out


def test_vllm_writes_the_targets_own_greedy_choice(answers, target_folder, tmp_path):
    dataset = open_or_prepare(str(answers), tmp_path, target_folder)
    same, total = on_policy_share(HFCapture(CaptureSpec(target_folder, (0,), resolve_dtype("bfloat16"))), dataset, PROMPTS)
    print(f"\nvLLM: {same} of {total} greedy tokens are the target's own choice")
    assert total > PROMPTS * TOKENS / 4 and same >= LEAST_SHARE * total


def test_every_prompt_has_an_answer_with_the_engines_own_ids(answers):
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len({row["key"] for row in rows}) == PROMPTS and all(row["retokenized"] is None for row in rows)
    assert json.loads(Path(f"{answers}.header.json").read_text())["engine"].startswith("vllm 0.")
