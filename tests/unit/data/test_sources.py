"""Oracle: one conversation in every accepted form gives the same messages; every kind of broken line is named with its place."""

import json

import huggingface_hub
import pytest

from torchspec.data.sources import _read_dataset, count_lines, read_rows, resolve
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
    """OpenAI's arguments are text; a template that dumps them as JSON would quote them a second time."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    parsed = {**call, "function": {"name": "f", "arguments": {"x": [1, "é"]}}}
    for key in ("reasoning_content", "reasoning", "thinking"):
        message = {"role": "assistant", "content": None, "tool_calls": [call, parsed], key: "Hm."}
        expected = {"role": "assistant", "content": None, "tool_calls": [parsed, parsed], "reasoning_content": "Hm."}
        assert only_row(write_jsonl, {"messages": [message]}).messages == [expected]


def test_tools_are_kept_as_a_list_or_as_its_text(write_jsonl):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for form in (tools, json.dumps(tools)):
        row = only_row(write_jsonl, {"messages": MESSAGES, "tools": form})
        assert (row.messages, row.tools) == (MESSAGES, tools)
    assert only_row(write_jsonl, {"messages": MESSAGES, "tools": []}).tools is None


def test_ultrachat_texts_alternate(write_jsonl):
    row = only_row(write_jsonl, {"id": "0", "data": ["Hi", "Hello 🙂", "Bye"]})
    assert [(m["role"], m["content"]) for m in row.messages] == [("user", "Hi"), ("assistant", "Hello 🙂"), ("user", "Bye")]


def test_a_json_array_is_read_element_by_element_with_the_line_of_each(tmp_path):
    """ShareGPT's own file; a broken element costs itself."""
    rows = [{"id": "a", "conversations": SHAREGPT}, [1], {"conversations": SHAREGPT[1:], "system": "Be brief."}]
    for indent in (None, 2):
        path = tmp_path / f"sharegpt{indent}.json"
        text = "\ufeff\n" + json.dumps(rows, indent=indent, ensure_ascii=False)
        path.write_text(text)
        found = list(read_rows([str(path)]))
        assert [row.messages for row in found] == [MESSAGES, None, MESSAGES] and found[1].problem == "not a JSON object: list"
        starts = [2, 2, 2] if indent is None else [n for n, line in enumerate(text.splitlines(), 1) if line in ("  {", "  [")]
        assert [row.where for row in found] == [f"{path}:{line}" for line in starts]


def test_a_damaged_json_array_is_an_error_and_no_end_of_data(tmp_path):
    (tmp_path / "cut.json").write_text(json.dumps([{"conversations": SHAREGPT}] * 2)[:-9])
    with pytest.raises(UserError, match=r"cut.json is a damaged JSON array .*one JSON object per line"):
        list(read_rows([str(tmp_path / "cut.json")]))


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
        ({}, "no key 'messages', 'conversations' or 'data': the row has no keys"),
        ({"prompt": "x", "answer": "y"}, "no key 'messages', 'conversations' or 'data': the row has 'prompt', 'answer'"),
        ({"messages": None, "id": 3}, "no key 'messages', 'conversations' or 'data': the row has 'id'"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "messages are no list: str"),
        ({"messages": ["hello"]}, "message is no object: message 0 is str"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role: 'narrator' in message 0"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "elf", "value": "x"}]}, "unknown role: 'elf' in message 1"),
        ({"conversations": [{"value": "x"}]}, "unknown role: None in message 0"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown role: ['user'] in message 0"),
        ({"messages": MESSAGES, "tools": "[{"}, "text that should be JSON is not: tools ("),
        ({"messages": MESSAGES, "tools": {"name": "f"}}, "tools are no list of objects: "),
        ({"messages": MESSAGES, "tools": [{"type": "function", "function": "f"}]}, "tools are no list of objects: "),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "tool call without a function name: message 0"),
        (
            {"messages": [{"role": "assistant", "tool_calls": {}, "content": 3, "thinking": 7}]},
            "reasoning is not text: message 0 holds int",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "tool_calls are no list: message 0 holds str"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]},
            "text that should be JSON is not: arguments of 'f' in message 0 (",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "tool call arguments are no object: 'f' in message 0",
        ),
        ({"data": "Hi"}, "data is no list of texts: "),
        ({"data": []}, "no messages"),
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
    (tmp_path / "set" / "train.jsonl").rename(tmp_path / "set" / "test.jsonl")
    assert [row.where for row in _read_dataset(f"{tmp_path / 'set'}:test")] == [f"{tmp_path / 'set'}:test:{i}" for i in range(2)]


def test_names_of_hub_datasets():
    assert [resolve(name) for name in ("owner/name", "owner/na-me.2:train_sft")] == ["owner/name", "owner/na-me.2:train_sft"]
    assert resolve("perfectblend") == "mlabonne/open-perfectblend"
    for wrong in ("owner/name:", "owner/name/more", "owner/name:a:b", "name:train"):
        with pytest.raises(UserError, match="give a .jsonl file or a hub dataset id"):
            resolve(wrong)


def test_lines_are_counted_for_the_time_left(write_jsonl):
    paths = [write_jsonl(f"{n}.jsonl", [{"messages": MESSAGES}] * n) for n in (1, 700)]
    assert count_lines(paths) == 701
    array = write_jsonl("a.json", [[{"messages": MESSAGES}]])
    assert count_lines([paths[0], array]) is count_lines([paths[0], "owner/name"]) is None
