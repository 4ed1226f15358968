"""Answers to the questions of a data set: kept under all that decides them, in the order of the questions. Oracle: answering afresh."""

import json

import pytest
import torch

from tests.unit.importers.foreign import DFLASH_SHAPES, ZLAB, tensors, write
from tests.unit.regenerate.stand_in import stand_in
from tests.unit.tiny import write_target
from torchspec import progress
from torchspec.chat.format import ChatFormat
from torchspec.decode.pair import load_pair
from torchspec.doctor.tiny import write_tiny_target
from torchspec.errors import UserError
from torchspec.evaluate.answers import answered, target_answers
from torchspec.evaluate.run import Settings, evaluating
from torchspec.regenerate.answering import Engine, open_answering
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.engine import running
from torchspec.regenerate.here import Here
from torchspec.regenerate.regenerator import Regenerator
from torchspec.regenerate.turns import Sampling, Turns

ASKED = [["Two plus two?"], ["Hi", "And you?"], ["Two plus two?"], ["Bye"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_target(tmp_path_factory.mktemp("answers") / "target")


def load(folder, temperature: float = 0.0) -> Regenerator:
    turns = Turns(ChatFormat.load(folder, None, False), Sampling(4, (temperature,), 0))
    engine, here = Engine("hf", [], 1, True, 16, None, "", None, 1), Here(folder, torch.float32, torch.device("cpu"))
    with open_answering(turns, engine, here, folder) as regenerator:
        return regenerator


def fresh(regenerator: Regenerator, turns: list[str]) -> list[list[int]]:
    conversation = Conversation("x", [[{"role": "user", "content": turn}] for turn in turns])
    list(regenerator.converse([conversation]))
    return [row["response_ids"] for row in conversation.rows]


def responses(file) -> list[list[int]]:
    return [json.loads(line)["response_ids"] for line in file.read_text().splitlines()]


def test_every_turn_in_the_order_of_the_questions_and_twice_where_it_is_asked_twice(folder, tmp_path):
    file = target_answers(load(folder), ASKED, tmp_path / "cache", tmp_path / "out", "gsm8k")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [[m["content"] for m in row["messages"] if m["role"] == "user"] for row in rows] == [
        ["Two plus two?"], ["Hi"], ["Hi", "And you?"], ["Two plus two?"], ["Bye"],
    ]  # fmt: skip
    (kept,) = (tmp_path / "cache" / "answers").glob("*.jsonl")
    assert len(kept.read_text().splitlines()) == 4  # the question that is asked twice is answered once


def test_a_log_tells_how_many_are_answered_and_what_is_left(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    target_answers(load(folder), ASKED, tmp_path / "cache", tmp_path / "out", "gsm8k")
    assert capsys.readouterr().out.splitlines()[-1] == "the target answers gsm8k: 3 of 3 conversations, 100%, eta 0:00"


def test_only_what_is_not_there_is_answered(folder, tmp_path):
    regenerator = load(folder)
    first = responses(target_answers(regenerator, ASKED[:1], tmp_path / "cache", tmp_path / "out", "a"))
    asked, generate = [], regenerator.generate
    regenerator.generate = lambda prompts, *how: asked.append(len(prompts)) or generate(prompts, *how)
    second = responses(target_answers(regenerator, [["Bye"], *ASKED[:1]], tmp_path / "cache", tmp_path / "out", "b"))
    assert asked == [1] and second == [*fresh(regenerator, ["Bye"]), *first]


def test_servers_answer_instead_and_their_answers_are_kept_apart(folder, tmp_path):
    """Oracle: the target here, which stands behind the server."""
    regenerator = load(folder)
    turns, asked = regenerator.turns, ASKED[:2]
    here = responses(target_answers(regenerator, asked, tmp_path / "cache", tmp_path / "out", "a"))
    with stand_in("vllm", lambda prompt, *_: regenerator.generate([prompt], 0.0, 0)[0], turns.tokenizer, turns.stop) as server:
        for _ in range(2):  # the second time from what is kept
            file = target_answers(running(turns, [server.url], 1, None), asked, tmp_path / "cache", tmp_path / "out", "b")
            assert responses(file) == here and len(server.bodies) == 3
    assert len(list((tmp_path / "cache" / "answers").glob("*.jsonl"))) == 2


def test_a_second_evaluation_is_refused_before_anything_is_answered(folder, tmp_path):
    draft = write(tmp_path / "draft", ZLAB, tensors(DFLASH_SHAPES))
    pair = load_pair(draft, str(write_target(tmp_path / "target")), "float32", "cpu", False)
    arguments = (pair, {"gsm8k": ASKED}, Settings(decode=0, max_new_tokens=4), tmp_path / "cache")
    with evaluating(pair, tmp_path / "out"), pytest.raises(UserError, match="torchspec eval, pid"):
        answered(*arguments, tmp_path / "out", [])
    with pytest.raises(UserError, match="is the folder of what is measured"):
        answered(*arguments, draft, [])
    assert not (tmp_path / "cache").exists() and not (draft / "answers").exists()


def test_answers_of_earlier_weights_are_not_taken_for_the_targets_own(folder, tmp_path):
    target = tmp_path / "target"
    write_tiny_target(target)
    old = responses(target_answers(load(target), ASKED[:1], tmp_path / "cache", tmp_path / "out", "a"))
    weights = (target / "model.safetensors").read_bytes()
    half = len(weights) // 2  # trained on in place: the same names, shapes and sizes
    (target / "model.safetensors").write_bytes(weights[:half] + bytes(byte ^ 1 for byte in weights[half:]))
    regenerator = load(target)
    new = responses(target_answers(regenerator, ASKED[:1], tmp_path / "cache", tmp_path / "out", "a"))
    assert new == fresh(regenerator, ASKED[0]) != old


@pytest.mark.parametrize("changed", ["generation_config.json", "tokenizer_config.json"])
def test_answers_stand_under_every_file_of_the_target(folder, tmp_path, changed):
    target = tmp_path / "target"
    write_tiny_target(target)
    target_answers(load(target), ASKED[:1], tmp_path / "cache", tmp_path / "out", "a")
    values = json.loads((target / changed).read_text()) | {"eos_token_id": 65, "eos_token": "<|im_start|>"}
    (target / changed).write_text(json.dumps(values))
    target_answers(load(target), ASKED[:1], tmp_path / "cache", tmp_path / "out", "a")
    assert len(list((tmp_path / "cache" / "answers").glob("*.jsonl"))) == 2


def test_questions_that_have_no_answer_are_told(folder, tmp_path, capsys):
    long = ["long " * 200]
    file = target_answers(load(folder), [["Hi"], long], tmp_path / "cache", tmp_path / "out", "gsm8k")
    assert len(responses(file)) == 1
    assert "1 questions of gsm8k have no answer, first gsm8k:1: too long for the target" in capsys.readouterr().out
    with pytest.raises(UserError, match="the target can answer no question of gsm8k: too long"):
        target_answers(load(folder), [long], tmp_path / "cache", tmp_path / "out", "gsm8k")
