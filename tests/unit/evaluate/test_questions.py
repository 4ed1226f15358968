"""Question sets. Oracle: rows in each hub data set's own schema, and the prompts as the published protocol writes them out."""

import json

import pytest

from torchspec.errors import UserError
from torchspec.evaluate.questions import DATA_SETS, questions

REASON = "\nPlease reason step by step, and put your final answer within \\boxed{}."
BEFORE = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests. You will NOT return anything except for the program"
)
FREE = "### Format: Write your code in the following format:\n```python\n# YOUR CODE HERE\n```"
GIVEN = "### Format: Use the following code structure:\n```python\nclass A:\n```"
AFTER = "### Answer: (use the provided format with backticks)"
# name, a row as the hub has it, and what the user says
ROWS = [
    ("gsm8k", {"question": "What is {1}?", "answer": "#### 1"}, ["What is {1}?" + REASON]),
    ("math500", {"problem": "$x$?", "solution": "s", "answer": "1"}, ["$x$?" + REASON]),
    ("aime24", {"id": 60, "problem": "P", "answer": "204"}, ["P" + REASON]),
    ("aime25", {"problem_idx": 1, "problem": "P", "answer": 70}, ["P" + REASON]),
    (
        "humaneval",
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "t"},
        ["Write a solution to the following problem and make sure that it passes the tests:\n```python\ndef f():\n\n```"],
    ),
    ("mbpp", {"task_id": 2, "prompt": "Write a function.", "code": "c"}, ["Write a function."]),
    (
        "livecodebench",
        {"question_content": "Q", "starter_code": ""},
        [f"{BEFORE}\n\n### Question:\nQ\n\n{FREE}\n\n{AFTER}"],
    ),
    (
        "livecodebench",
        {"question_content": "Q", "starter_code": "class A:"},
        [f"{BEFORE}\n\n### Question:\nQ\n\n{GIVEN}\n\n{AFTER}"],
    ),
    ("swe-bench", {"repo": "r", "problem_statement": "Broken."}, ["Problem Statement:\nBroken.\nPlease fix the issue described above."]),
    ("mt-bench", {"category": "writing", "prompt": ["Write.", "Again."]}, ["Write.", "Again."]),
    ("alpaca", {"instruction": "Sum.", "input": "", "output": "o"}, ["Sum."]),
    ("alpaca", {"instruction": "Sum.", "input": "1 2", "output": "o"}, ["Sum.\n\nInput:\n1 2"]),
]


@pytest.mark.parametrize(("name", "row", "turns"), ROWS)
def test_a_row_of_the_hub_becomes_the_published_prompt(tmp_path, name, row, turns):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert questions(name, tmp_path, None) == [turns]


def test_every_data_set_has_such_a_row():
    assert {name for name, _, _ in ROWS} == DATA_SETS.keys()


def test_samples_are_the_first_of_the_protocols_shuffle_and_turns_may_be_given(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps({"turns": [str(i)]}) + "\n" for i in range(10)))
    order = [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]  # random.Random(42).shuffle of ten
    assert questions("gsm8k", tmp_path, None) == [[str(i)] for i in order]
    assert questions("gsm8k", tmp_path, 4) == [[str(i)] for i in order[:4]]


def test_what_cannot_be_asked_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="data set 'gsm9k' is not known; choose among gsm8k, math500"):
        questions("gsm9k", tmp_path, None)
    with pytest.raises(UserError, match=f"--data-dir holds no mbpp.jsonl .looked for {tmp_path}/mbpp.jsonl"):
        questions("mbpp", tmp_path, None)
    (tmp_path / "mbpp.jsonl").write_text('{"prompt": "a"}\n{"text": "b", "id": 1}\n')
    with pytest.raises(UserError, match="mbpp.jsonl:2: data set mbpp needs the key 'prompt' .or 'turns'.; the row has 'text', 'id'"):
        questions("mbpp", tmp_path, None)
    (tmp_path / "mbpp.jsonl").write_text('{"prompt": "a"}\nnot json\n')
    with pytest.raises(UserError, match="mbpp.jsonl:2 is not valid JSON"):
        questions("mbpp", tmp_path, None)
