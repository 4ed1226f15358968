"""Oracle: one conversation in every accepted form gives the same messages; every kind of broken line is named with its place."""

import json

import huggingface_hub
import pytest

from torchspec.data.sources import _read_dataset, read_rows
from torchspec.errors import UserError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello 🙂"},
]
SHAREGPT = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello 🙂"}]


def only_row(write_jsonl, row):
    (found,) = read_rows([write_jsonl("data.jsonl", [row])])
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"messages": MESSAGES, "tools": None, "conversations": None},
        {"messages": [{**message, "tool_calls": None} for message in MESSAGES]},
        {"conversations": SHAREGPT},
        {"conversations": SHAREGPT[1:], "system": "Be brief."},
        {"conversations": MESSAGES},
        "\ufeff" + json.dumps({"messages": MESSAGES}),
    ],
)
def test_every_form_gives_the_same_messages(write_jsonl, row):
    row = only_row(write_jsonl, row)
    assert (row.messages, row.problem) == (MESSAGES, None)


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("user", "user"), ("system", "system"), ("developer", "developer")]
    + [(name, "assistant") for name in ("gpt", "assistant", "chatgpt", "model", "bot")]
    + [(name, "tool") for name in ("tool", "function", "observation")],
)
def test_sharegpt_roles(write_jsonl, name, role):
    assert only_row(write_jsonl, {"conversations": [{"from": name, "value": "x"}]}).messages == [{"role": role, "content": "x"}]


def test_reasoning_and_tool_calls_reach_the_template(write_jsonl):
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}], "reasoning_content": "Hm."}
    assert only_row(write_jsonl, {"messages": [message]}).messages == [message]


def test_rows_of_regenerate_carry_token_truth(write_jsonl):
    row = only_row(write_jsonl, {"messages": MESSAGES, "prompt_ids": [1, 2], "response_ids": [3], "tools": [{"name": "f"}]})
    assert (row.prompt_ids, row.response_ids, row.messages, row.problem) == ([1, 2], [3], None, None)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"messages": [}', "not valid JSON: Expecting value at column 15"),
        ('{"messages": ' + "1" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ("[" * 100_000, "not valid JSON: "),
        ("[1, 2]", "not a JSON object: list"),
        ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "text holds half of a surrogate pair"),
        ({}, "no key 'messages' or 'conversations': the row has no keys"),
        ({"prompt": "x", "answer": "y"}, "no key 'messages' or 'conversations': the row has 'prompt', 'answer'"),
        ({"messages": None, "id": 3}, "no key 'messages' or 'conversations': the row has 'id'"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "messages are no list: str"),
        ({"messages": ["hello"]}, "message is no object: message 0 is str"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role: 'narrator' in message 0"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "elf", "value": "x"}]}, "unknown role: 'elf' in message 1"),
        ({"conversations": [{"value": "x"}]}, "unknown role: None in message 0"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role: ['user'] in message 0"),
        ({"messages": MESSAGES, "tools": [{"name": "f"}]}, "tools are not rendered: "),
        ({"prompt_ids": [1]}, "response_ids is not a list of token ids: "),
        ({"prompt_ids": [], "response_ids": [1]}, "prompt_ids is not a list of token ids: "),
        ({"prompt_ids": [1], "response_ids": [1.5]}, "response_ids is not a list of token ids: "),
        ({"prompt_ids": [True], "response_ids": [1]}, "prompt_ids is not a list of token ids: "),
        ({"prompt_ids": "1 2", "response_ids": [1]}, "prompt_ids is not a list of token ids: "),
    ],
)
def test_broken_rows_carry_their_problem(write_jsonl, row, problem):
    found = only_row(write_jsonl, row)
    assert found.problem.startswith(problem)
    assert found.messages is found.prompt_ids is found.response_ids is None


def test_bytes_that_are_not_utf8_cost_one_row(tmp_path):
    path = tmp_path / "latin1.jsonl"
    good = json.dumps({"messages": MESSAGES}).encode()
    path.write_bytes(b'{"a": "caf\xe9"}\r\n\r\n  \n' + good)
    broken, fine = read_rows([str(path)])
    assert (broken.where, broken.problem) == (f"{path}:1", "not UTF-8: byte 0xe9 at column 11")
    assert (fine.where, fine.messages) == (f"{path}:4", MESSAGES)


def test_inputs_follow_each_other(write_jsonl):
    paths = [write_jsonl(name, [{"messages": MESSAGES}] * 2) for name in ("a.jsonl", "b.jsonl")]
    assert [row.where for row in read_rows(paths)] == [f"{path}:{line}" for path in paths for line in (1, 2)]


def test_wrong_names_fail_before_the_first_row(write_jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = write_jsonl("good.jsonl", [{"messages": MESSAGES}])
    for name in ("missing.jsonl", "data/missing.jsonl", "nothing"):
        with pytest.raises(UserError, match=f"no file at {tmp_path / name}"):
            read_rows([good, name])
    with pytest.raises(UserError, match="is a folder"):
        read_rows([str(tmp_path)])


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_file(tmp_path, content):
    (tmp_path / "empty.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"empty.jsonl is empty"):
        list(read_rows([str(tmp_path / "empty.jsonl")]))


def test_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"input 'owner/name': no such file, and the hub dataset cannot be read \(Couldn't reach"):
        list(read_rows(["owner/name"]))


def test_dataset_rows(write_jsonl, tmp_path):
    """The hub's loader on a local folder: the same code path as owner/name, without the network."""
    (tmp_path / "set").mkdir()
    write_jsonl("set/train.jsonl", [{"messages": MESSAGES}, {"messages": [{"role": "elf", "content": "x"}]}])
    first, second = _read_dataset(str(tmp_path / "set"))
    assert (first.where, first.messages) == (f"{tmp_path / 'set'}:0", MESSAGES)
    assert second.problem == "unknown role: 'elf' in message 0"
