"""Oracle: conservation (every row is written or listed with its reason) and the open-perfectblend schema converted by hand."""

import json
import os
import runpy
import sys
from pathlib import Path

import datasets
import pytest
from rich.console import Console

from torchspec.errors import UserError
from torchspec.rows.collect import check_arguments, collect
from torchspec.rows.sources import check_no_input, read_rows

ROOT = Path(__file__).parents[3]


def turn(role: str, text: str) -> dict:
    return {"from": role, "value": text}


def row(*turns: dict, source: str = "theblackcat102/evol-codealpaca-v1") -> dict:
    """The schema of mlabonne/open-perfectblend."""
    return {"conversations": list(turns), "source": source}


BLEND = [
    row(turn("human", "Sort a list."), turn("gpt", "sorted(x)")),
    row(turn("system", "Be brief."), turn("human", "2+2?"), turn("gpt", "4"), turn("human", "×2?"), turn("gpt", "8"), source="meta-math"),
    row(turn("human", "Nobody answers."), source="lmsys"),
    row(turn("human", "Empty."), turn("gpt", " ")),
    row(turn("gpt", "I begin.")),
    row(turn("human", "Sort a list."), turn("gpt", "sorted(x)"), source="another copy"),
    row(turn("narrator", "Once."), turn("gpt", "Yes.")),
]
EXPECTED = [
    [("user", "Sort a list."), ("assistant", "sorted(x)")],
    [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "×2?"), ("assistant", "8")],
]
REASONS = {
    2: "no assistant turn",
    3: "empty assistant content: message 1",
    4: "no user turn before the last answer",
    5: "exact duplicate",
    6: "unknown role: 'narrator' in message 0",
}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def conversations(path: Path) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in line["messages"]] for line in lines(path)]


def test_perfectblend_rows_become_messages_and_the_rest_is_listed(write_jsonl, tmp_path):
    path, out = write_jsonl("blend.jsonl", BLEND), tmp_path / "out.jsonl"
    collected = collect([path], out, None, 0, 0.9, progress=False)
    assert conversations(out) == EXPECTED and [line["id"] for line in lines(out)] == [f"{path}:1", f"{path}:2"]
    assert (collected.written, collected.usable, collected.ledger.rows) == (2, 2, 7)
    assert {int(e["where"].rpartition(":")[2]) - 1: e["reason"] for e in lines(collected.listing)} == REASONS
    with Console(file=open(os.devnull, "w"), record=True, width=200) as console:
        collected.report(console)
    text = console.export_text()
    assert "2 conversations of 2 usable ones in 7 rows" in text and "rejected 1: empty assistant content (listed in" in text


def test_the_output_is_an_input_and_keeps_tools(write_jsonl, tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    path = write_jsonl("a.jsonl", [{"messages": [{"role": "user", "content": "é"}, call], "tools": tools}, *BLEND[:2]])
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    collect([path], once, None, 0, 0, progress=False)
    collect([str(once)], twice, None, 0, 0, progress=False)
    assert lines(once)[0]["tools"] == tools
    assert [{**line, "id": 0} for line in lines(once)] == [{**line, "id": 0} for line in lines(twice)]
    assert not once.with_name("once.jsonl.rejected").exists()


def test_a_sample_is_drawn_evenly_from_the_usable_rows_and_by_the_seed(write_jsonl, tmp_path):
    """500 draws of 5 of 20: every row is expected 125 times; five standard deviations are 48."""
    path = write_jsonl("a.jsonl", [row(turn("human", f"Q{i}"), turn("gpt", f"A{i}")) for i in range(20)] + [BLEND[2]])
    counts = [0] * 20
    for seed in range(500):
        collect([path], tmp_path / "out.jsonl", 5, seed, 0.1, progress=False)
        drawn = [int(line["id"].rpartition(":")[2]) - 1 for line in lines(tmp_path / "out.jsonl")]
        assert drawn == sorted(set(drawn)) and len(drawn) == 5
        for i in drawn:
            counts[i] += 1
    assert all(abs(count - 125) < 48 for count in counts), counts
    first = (tmp_path / "out.jsonl").read_bytes()
    collect([path], tmp_path / "out.jsonl", 5, 499, 0.1, progress=False)
    assert (tmp_path / "out.jsonl").read_bytes() == first
    assert collect([path], tmp_path / "out.jsonl", 100, 0, 0.1, progress=False).written == 20


def test_bad_input_leaves_the_old_file_alone(write_jsonl, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text('{"id": "old:1", "messages": []}\n')
    before = out.read_bytes()
    with pytest.raises(UserError, match="4 of 7 rows are rejected"):
        collect([write_jsonl("blend.jsonl", BLEND)], out, 1, 0, 0.1, progress=False)
    with pytest.raises(UserError, match="no file at"):
        collect(["nowhere.jsonl"], out, 1, 0, 0.1, progress=False)
    assert out.read_bytes() == before and not (tmp_path / "out.jsonl.partial").exists()


@pytest.mark.parametrize("text", ["my notes", '{"messages": []}\n', "[1]"])
def test_a_file_that_somebody_else_wrote_is_not_replaced(write_jsonl, tmp_path, text):
    out = tmp_path / "out.jsonl"
    out.write_text(text)
    with pytest.raises(UserError, match="holds no conversations of `torchspec prepare`; name another file"):
        collect([write_jsonl("blend.jsonl", BLEND)], out, 1, 0, 1.0, progress=False)
    assert out.read_text() == text


@pytest.mark.parametrize("out", ["in.jsonl", "other/../in.jsonl", "link.jsonl", "hard.jsonl", "folder/new.jsonl", "answers.jsonl"])
def test_what_is_read_is_never_what_is_written(tmp_path, out):
    """By any name of the file; inside of a folder that is read as a data set; and beside the output, where its lists go."""
    source, folder, dropped = tmp_path / "in.jsonl", tmp_path / "folder", tmp_path / "answers.jsonl.dropped"
    (tmp_path / "other").mkdir()
    folder.mkdir()
    for file in (source, dropped, folder / "train.jsonl"):
        file.write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    with pytest.raises(UserError, match="would overwrite what is read, .*; name another place"):
        check_no_input(tmp_path / out, [str(dropped), str(folder), str(source)])
    check_no_input(tmp_path / "new.jsonl", [str(dropped), str(folder), str(source), "owner/name"])


def test_arguments_that_do_not_go_together():
    check_arguments(Path("a.jsonl"), None, 5, None)
    check_arguments(Path("folder"), "target", None, None)
    with pytest.raises(UserError, match="--target is missing"):
        check_arguments(Path("folder"), None, None, None)
    with pytest.raises(UserError, match="names a file, but with --target a folder is written"):
        check_arguments(Path("a.jsonl"), "target", None, None)
    with pytest.raises(UserError, match="--sample-size draws conversations"):
        check_arguments(Path("folder"), "target", 5, None)
    with pytest.raises(UserError, match="--language en filters conversations: write them to an --out FILE.jsonl without --target"):
        check_arguments(Path("folder"), "target", None, None, ["en"])
    with pytest.raises(UserError, match="--held-out a.jsonl is compared in the target's tokens: name the --target"):
        check_arguments(Path("b.jsonl"), None, None, "a.jsonl")
    with pytest.raises(UserError, match="no file at"):
        check_arguments(Path("folder"), "target", None, "nowhere.jsonl")


@pytest.fixture
def hub_folder(tmp_path) -> Path:
    """The data set as it lies on the hub, where `datasets` looks first: ./owner/name of the current folder."""
    folder = tmp_path / "mlabonne" / "open-perfectblend"
    folder.mkdir(parents=True)
    good = [row(turn("human", f"Q{i}"), turn("gpt", f"A{i}")) for i in range(40)]
    datasets.Dataset.from_list(good + BLEND).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture
def documented_command(tmp_path, monkeypatch, capsys):
    """As typed, in this process: -> exit code, what it printed, what it said of errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    script = ROOT / "scripts" / "tools" / "prepare_perfectblend.py"

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(script), "--output", "data/perfectblend.jsonl", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run


def test_the_documented_command_samples_perfectblend(tmp_path, hub_folder, documented_command):
    code, printed, error = documented_command("--max_samples", "10")
    assert code == 0, error
    assert "10 conversations of 42 usable ones in 47 rows" in printed
    rows, sources = lines(tmp_path / "data" / "perfectblend.jsonl"), [row.messages for row in read_rows([str(hub_folder)])]
    assert [row["messages"] for row in rows] == [sources[int(row["id"].rpartition(":")[2])] for row in rows]


def test_without_the_hub_the_command_says_so(tmp_path, documented_command):
    code, _, said = documented_command("--sample-size", "10")
    assert code == 2 and not (tmp_path / "data" / "perfectblend.jsonl").exists()
    (error,) = [line for line in said.splitlines() if line]
    assert error.startswith("error: input 'mlabonne/open-perfectblend'") and "cannot be read (Couldn't reach" in error
