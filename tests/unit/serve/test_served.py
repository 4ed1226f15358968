"""What a server is asked, what it counts and what is kept, against an engine whose answers and counts are known beforehand."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.decode.drafters import FirstChoice
from tests.unit.tiny import NEVER, B, lively, random_prompt
from torchspec.acceptance.sampling import Sampler
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import plain_decode, speculative_decode
from torchspec.errors import UserError
from torchspec.files.kept import Kept
from torchspec.records import Prompt
from torchspec.serve import engines
from torchspec.serve.measure import measure_served
from torchspec.serve.options import Serving
from torchspec.serve.side import Asked

PROMPTS, TOKENS = 10, 12


@pytest.fixture(scope="module")
def pair(tiny_oracle, tiny_method, tiny_folder) -> Pair:
    model = lively(tiny_method.build(torch.Generator().manual_seed(0))).eval().requires_grad_(False)
    return Pair(Path("the draft"), tiny_folder, tiny_oracle, tiny_method, model)


@pytest.fixture(scope="module")
def asked(pair) -> Asked:
    prompts = []
    for i in range(PROMPTS):
        ids = torch.cat((random_prompt(i, 5 + i), torch.tensor([7])))
        prompts.append(Prompt(i, ids, torch.arange(len(ids)) == len(ids) - 1))
    return Asked(prompts, TOKENS, 0.0, 0, ())


def answers(pair: Pair, asked: Asked) -> dict:
    """What our own decoder writes and accepts, of a draft that proposes its first choices at every temperature."""
    known = {}
    for prompt in asked.prompts:
        sampler, drafter = Sampler(asked.temperature, prompt.index), pair.method.drafter(pair.model)
        drafter = FirstChoice(drafter) if asked.temperature > 0 else drafter
        answer = speculative_decode(pair.target, drafter, prompt.question, asked.max_new_tokens, NEVER, sampler)
        known[",".join(map(str, prompt.question.tolist()))] = {"ids": answer.ids, "accepted": answer.accepted}
    return known


@pytest.fixture
def serve(pair, asked, tmp_path, monkeypatch):
    """Measures with the stand-in engine, which knows `known` and is started with further arguments."""
    monkeypatch.setitem(
        engines.ENGINES, "vllm", dataclasses.replace(engines.ENGINES["vllm"], command=engines.module("tests.unit.serve.engine"))
    )

    def run(known: dict, arguments: str = "", concurrencies: tuple[int, ...] = (1, 4), asked: Asked = asked) -> dict:
        file = tmp_path / "answers.json"
        file.write_text(json.dumps(known))
        serving = Serving("vllm", python=sys.executable, arguments=f"--answers {shlex.quote(str(file))} {arguments}")
        return measure_served(pair, asked, list(concurrencies), serving, Kept(tmp_path / "served.jsonl", {}), tmp_path / "logs")

    return run


def test_counts_are_the_engines_and_agree_with_our_own_walk(serve, pair, asked):
    known = answers(pair, asked)
    served = serve(known)
    steps = [count for answer in known.values() for count in answer["accepted"]]
    for row in served["by_concurrency"]:
        assert row["steps"] == len(steps)
        assert row["tau"] == PROMPTS * (TOKENS - 1) / len(steps)
        assert row["slot_acceptance"] == [sum(count >= k for count in steps) / len(steps) for k in range(1, B)]
        assert row["speedup"] == row["draft"]["tokens_per_second"] / row["plain"]["tokens_per_second"]
    assert served["own_tau"] == served["by_concurrency"][0]["tau"] and served["gap"] == 0 and served["alarm"] is None
    assert (served["engine"], served["version"]) == ("vllm", "0.0-test")
    assert (served["of"], served["identical"], served["ties"], served["mismatches"]) == (PROMPTS, PROMPTS, 0, 0)


def test_a_sampling_server_agrees_with_the_walk_over_its_text(serve, pair, asked):
    """No gap at all: whether a first choice was accepted stands in the text."""
    sampled = dataclasses.replace(asked, temperature=1.0, max_new_tokens=24)
    known = answers(pair, sampled)
    served = serve(known, "--temperature 1.0", (4,), sampled)
    steps = [count for answer in known.values() for count in answer["accepted"]]
    assert served["own_tau"] == served["by_concurrency"][0]["tau"] == PROMPTS * 23 / len(steps) > 1
    assert served["gap"] == 0 and served["alarm"] is None and served["of"] == 0
    planted = {prompt: {**answer, "accepted": [1] * 12} for prompt, answer in known.items()}
    found = serve(planted, "--temperature 1.0", (1,), sampled)
    assert found["gap"] == 23 / 12 / served["own_tau"] - 1 and "told to sample its drafts" in found["alarm"]


def test_a_draft_that_the_server_does_not_accept_as_we_do_is_an_alarm(serve, pair, asked):
    """Planted: the engine takes five steps for eleven tokens. (The other sign needs a draft that accepts: this one is random.)"""
    known = {prompt: {**answer, "accepted": [1] * 5} for prompt, answer in answers(pair, asked).items()}
    served = serve(known, concurrencies=(1,))
    assert served["by_concurrency"][0]["tau"] == 11 / 5
    assert served["gap"] == 11 / 5 / served["own_tau"] - 1
    assert "not the trained one" in served["alarm"]


def test_an_answer_that_changes_with_the_draft_is_a_mismatch(serve, pair, asked, tmp_path):
    """Planted: the server with the draft writes another token than the one without."""
    known = answers(pair, asked)
    served = serve(known, concurrencies=(1,))
    assert served["mismatches"] == 0
    kept = [json.loads(line) for line in (tmp_path / "served.jsonl").read_text().splitlines()]
    assert "with the draft" in kept[-1]["key"]
    kept[-1]["value"]["group"]["replies"][0]["ids"][3] ^= 1
    (tmp_path / "served.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert serve(known, concurrencies=(1,))["mismatches"] == 1


def test_a_server_that_dies_costs_the_running_group_only(serve, pair, asked, tmp_path):
    known, log = answers(pair, asked), tmp_path / "asked.txt"
    with pytest.raises(UserError, match="failed .*its log is .*vllm_without_draft.log. What was measured is kept"):
        serve(known, f"--asked {log} --dies-after 9", concurrencies=(1,))  # a warm-up and the first group of eight
    assert len(log.read_text().splitlines()) == 1 + 8 + 1
    log.unlink()
    served = serve(known, f"--asked {log}", concurrencies=(1,))
    assert len(log.read_text().splitlines()) == (1 + PROMPTS - 8) + (1 + PROMPTS)  # the rest without draft, all with it
    assert served["identical"] == PROMPTS


def test_a_server_that_cannot_start_is_one_sentence_with_its_own_error(serve, pair, asked):
    with pytest.raises(UserError, match=r"vllm without draft ended while it started \(exit code 3\): ValueError: no such model; its log"):
        serve(answers(pair, asked), "--dies-at-once")


def test_nobody_at_a_url(pair, asked, tmp_path):
    serving = Serving("vllm", url="http://127.0.0.1:9", plain_url="http://127.0.0.1:9")
    with pytest.raises(UserError, match="the server at http://127.0.0.1:9 failed .*is a server running there"):
        measure_served(pair, asked, [1], serving, Kept(tmp_path / "served.jsonl", {}), tmp_path)


def test_concurrencies_beyond_the_number_of_prompts(serve, pair, asked):
    known = answers(pair, asked)
    with pytest.raises(UserError, match="--concurrency 32 needs as many prompts, there are 10"):
        serve(known, concurrencies=(32,))
    assert [row["concurrency"] for row in serve(known, concurrencies=(4, 32))["by_concurrency"]] == [4]


def test_plain_text_of_the_stand_in_is_the_targets(pair, asked):
    """The fixture's ground: losslessness of our own decoder, on which `identical` above rests."""
    for prompt, answer in zip(asked.prompts, answers(pair, asked).values(), strict=True):
        assert plain_decode(pair.target, prompt.question, TOKENS, NEVER).ids == answer["ids"]
