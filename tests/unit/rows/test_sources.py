"""Oracle: one conversation in every accepted form gives the same messages; every kind of broken line is named with its place."""

import csv
import gzip
import json
import random
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchspec.errors import UserError
from torchspec.rows.sources import count_lines, read_rows, resolve

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
    """OpenAI's arguments are text; a template that dumps them as JSON would quote them a second time. Servers render null as ""."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}
    parsed = {**call, "function": {"name": "f", "arguments": {"x": [1, "é"]}}}
    for key in ("reasoning_content", "reasoning", "thinking"):
        message = {"role": "assistant", "content": None, "tool_calls": [call, parsed], key: "Hm."}
        expected = {"role": "assistant", "content": "", "tool_calls": [parsed, parsed], "reasoning_content": "Hm."}
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
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is prepared already"):
        read_rows([good, "made"])
    for name, advice in {"rows.txt.gz": "no .jsonl.gz", "rows.jsonl.zst": "is of no form that is read here; unpack"}.items():
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=advice):
            read_rows([good, name])


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_file(tmp_path, content):
    (tmp_path / "empty.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"empty.jsonl is empty"):
        list(read_rows([str(tmp_path / "empty.jsonl")]))


def test_unreachable_hub_is_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"input 'owner/name': no such file, and the data set cannot be read \(Couldn't reach"):
        list(read_rows(["owner/name"]))


@pytest.fixture
def talk(tmp_path, monkeypatch) -> Path:
    """The hub's loader on a local folder: the same code path as owner/name, without the network."""
    folder = tmp_path / "acme" / "talk"
    folder.mkdir(parents=True)
    for subset in ("all", "code"):
        (folder / f"{subset}.jsonl").write_text(json.dumps({"messages": [*MESSAGES[:1], {"role": "user", "content": subset}]}) + "\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("all", "code"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    monkeypatch.chdir(tmp_path)
    return folder


def test_subset_and_split_of_a_data_set(talk):
    for name in ("acme/talk:code:train", f"{talk}:code:train"):
        (row,) = read_rows([name])
        assert (row.where, row.messages[1]["content"]) == (f"{name}:0", "code")
    for name, advice in {
        "acme/talk": r"its subsets are all, code: name one as acme/talk:SUBSET:SPLIT",
        "acme/talk:code": r"its subsets are all, code: name one as acme/talk:SUBSET:SPLIT",
        "acme/talk:cod:train": r"its subsets are all, code: name one as acme/talk:SUBSET:SPLIT",
        "acme/talk:code:test": r"its splits are train: name one as acme/talk:code:SPLIT",
    }.items():
        with pytest.raises(UserError, match=advice):
            list(read_rows([name]))


def test_a_folder_without_subsets_has_splits(write_jsonl, tmp_path):
    (tmp_path / "set").mkdir()
    write_jsonl("set/train.jsonl", [{"messages": MESSAGES}, {"messages": [{"role": "elf", "content": "x"}]}])
    first, second = read_rows([str(tmp_path / "set")])
    assert (first.where, first.messages) == (f"{tmp_path / 'set'}:0", MESSAGES)
    assert second.problem == "unknown role: 'elf' in message 0"
    (tmp_path / "set" / "train.jsonl").rename(tmp_path / "set" / "test.jsonl")
    assert [row.where for row in read_rows([f"{tmp_path / 'set'}:test"])] == [f"{tmp_path / 'set'}:test:{i}" for i in range(2)]
    with pytest.raises(UserError, match="its splits are test: name one as .*set:SPLIT"):
        list(read_rows([str(tmp_path / "set")]))


CALLS = [  # what a table fills with null: arguments and schemas of every other row
    {
        "messages": [
            {"role": "user", "content": name},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}]},
        ],
        "tools": [
            {"type": "function", "function": {"name": name, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}}}
        ],
    }
    for name, arguments in {"rain": {"city": "Oslo"}, "frogs": {"text": "frog", "most": 3}}.items()
]


def test_every_file_of_the_same_rows_gives_the_same_rows(tmp_path, write_jsonl):
    lines = "\ufeff" + "\r\n".join(json.dumps(row) for row in CALLS)
    cells = [{key: json.dumps(value) for key, value in row.items()} for row in CALLS]
    (tmp_path / "rows.jsonl").write_bytes(lines.encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(CALLS, indent=1).encode()))
    pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "rows [1].parquet")  # brackets are no pattern
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "texts.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["messages", "tools", "images"])
        table.writeheader()
        table.writerows({**cell, "images": "[]"} for cell in cells)
    for file in sorted(tmp_path.iterdir()):
        rows = list(read_rows([str(file)]))
        assert [(row.problem, row.messages, row.tools) for row in rows] == [(None, row["messages"], row["tools"]) for row in CALLS], file
        assert len({row.where for row in rows}) == 2 and all(row.where.startswith(str(file)) for row in rows)
    assert count_lines([str(tmp_path / "rows.jsonl.gz")]) is count_lines([str(tmp_path / "rows.csv")]) is None


def test_a_null_that_a_row_wrote_itself_is_kept(write_jsonl):
    call = {"function": {"name": "f", "arguments": {"x": None, "y": [None]}}}
    row = only_row(write_jsonl, {"messages": [*MESSAGES[:2], {"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert row.messages[2]["tool_calls"] == [call]


@pytest.mark.parametrize("break_", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_at_its_newline_alone(tmp_path, break_):
    path, messages = tmp_path / "a.jsonl", [*MESSAGES[:2], {"role": "assistant", "content": f"a{break_}b"}]
    path.write_text("".join(json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for _ in range(2)))
    assert [(row.where, row.messages) for row in read_rows([str(path)])] == [(f"{path}:{line}", messages) for line in (1, 2)]


def test_damaged_files_name_themselves_and_the_last_row_that_was_read(tmp_path):
    rows = "".join(json.dumps({"messages": MESSAGES, "id": random.random()}) + "\n" for _ in range(2000)).encode()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(rows)[:-2000])
    (tmp_path / "no.jsonl.gz").write_bytes(rows)
    (tmp_path / "no.json.gz").write_bytes(rows)
    (tmp_path / "no.parquet").write_bytes(rows)
    (tmp_path / "latin1.json").write_bytes(b'["caf\xe9"]')
    (tmp_path / "latin1.csv").write_bytes(b'messages\n"[]"\n"caf\xe9"\n')
    for name, reason in {
        "cut.jsonl.gz": r"\(Compressed file ended .*; the last row read was .*cut.jsonl.gz:\d{3,}\)",
        "no.jsonl.gz": r"\(Not a gzipped file",
        "no.json.gz": r"\(Not a gzipped file",
        "no.parquet": r"\(Parquet magic bytes not found",
        "latin1.json": r"\('utf-8' codec can't decode byte 0xe9",
        "latin1.csv": r"\('utf-8' codec can't decode byte 0xe9",
    }.items():
        with pytest.raises(UserError, match=f"input {tmp_path / name} cannot be read {reason}"):
            list(read_rows([str(tmp_path / name)]))


def test_names_of_data_sets():
    named = {
        "owner/name": ("owner/name", None, "train"),
        "owner/na-me.2:train_sft": ("owner/na-me.2", None, "train_sft"),
        "owner/name:a b:test": ("owner/name", "a b", "test"),
        "perfectblend": ("mlabonne/open-perfectblend", None, "train"),
    }
    assert {name: (s.source, s.subset, s.split) for name, s in ((name, resolve(name)) for name in named)} == named
    for wrong in ("owner/name:", "owner/name/more", "owner/name:a:b:c", "name:train", "owner/name.parquet"):
        with pytest.raises(UserError, match="give a .jsonl, .*or a data set as owner/name"):
            resolve(wrong)


def test_lines_are_counted_for_the_time_left(write_jsonl):
    paths = [write_jsonl(f"{n}.jsonl", [{"messages": MESSAGES}] * n) for n in (1, 700)]
    assert count_lines(paths) == 701
    array = write_jsonl("a.json", [[{"messages": MESSAGES}]])
    assert count_lines([paths[0], array]) is count_lines([paths[0], "owner/name"]) is None
