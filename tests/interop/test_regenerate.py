"""Real vLLM and SGLang, started by `torchspec regenerate` and then asked by URL as servers that run already, write what the target itself
would write."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from tests.interop.conftest import ENGINES, environment
from tests.interop.running import ON_CPU
from torchspec.chat.format import ChatFormat
from torchspec.data.dataset import open_or_prepare
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.regenerate.answering import Engine, open_answering
from torchspec.regenerate.here import Here
from torchspec.regenerate.run import Wanted, regenerate
from torchspec.regenerate.share import on_policy_share
from torchspec.regenerate.turns import Sampling, Turns

PROMPTS, TOKENS, IN_FLIGHT = 12, 48, 4
LEAST_SHARE = 0.98  # another engine's roundings in bfloat16
SMALL = {"vllm": "--enforce-eager --max-model-len 1024 --max-num-seqs 4", "sglang": ON_CPU["sglang"]}  # for two cores
SOURCE = str(Path(str(files("torchspec.demo"))) / "prompts_heldout.jsonl")


@pytest.fixture(scope="module")
def here(target_folder) -> Here:
    return Here(target_folder, resolve_dtype("bfloat16"), resolve_device("cpu"))


@pytest.fixture(scope="module", params=SMALL)
def answers(request, here, tmp_path_factory) -> tuple[str, Path, Path]:
    """The engine's name, what it wrote when it was started for this, and what it wrote when it ran already."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    turns = Turns(ChatFormat.load(here.folder, None, False), Sampling(TOKENS, (0.0,), 0), max_length=1024)
    started = Engine(name, [], IN_FLIGHT, True, 1, str(ENGINES[name]), SMALL[name], None, 1)
    out, again = folder / "out.jsonl", folder / "again.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (environment(name) | {"HOME": str(folder)}).items():
            patch.setenv(key, value)
        with open_answering(turns, started, here, out) as servers:
            regenerate([SOURCE], out, servers, Wanted(limit=PROMPTS))
            running = Engine("hf", [servers.servers[0].url], IN_FLIGHT, True, 1, None, "", None, 1)
            with open_answering(turns, running, here, again) as others:
                regenerate([SOURCE], again, others, Wanted(limit=PROMPTS))
    return name, out, again


def test_an_engine_writes_the_targets_own_greedy_choice(answers, here, tmp_path):
    name, *written = answers
    counted = [on_policy_share(here.target, open_or_prepare(str(file), tmp_path / file.stem, here.folder), PROMPTS) for file in written]
    same, total = map(sum, zip(*counted, strict=True))
    print(f"\n{name}: {same} of {total} greedy tokens are the target's own choice")
    assert total > 2 * PROMPTS * TOKENS / 4 and same >= LEAST_SHARE * total


def test_every_prompt_has_an_answer_with_the_engines_own_ids(answers):
    name, *written = answers
    for file in written:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len({row["key"] for row in rows}) == PROMPTS and all(row["retokenized"] is None for row in rows)
        assert json.loads(Path(f"{file}.header.json").read_text())["engine"].startswith(f"{name} 0.")
