"""Oracle: conservation. Every row is a sample or stands in rejected.jsonl with its reason; the manifest's sums are the data's."""

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import psutil
import pytest

from tests.tiny import VOCABULARY
from torchspec.chat.format import ChatFormat
from torchspec.data import encode
from torchspec.data.encode import CHUNK, ROWS_ALONE, Options, _end_with, encode_rows
from torchspec.data.prepare import Manifest, prepare, tokenizer_hash
from torchspec.errors import ContractError, UserError
from torchspec.progress import with_progress, with_time_left
from torchspec.rows.formats import Row


def conversation(i: int, answer: str = "The answer is {i}, as always.") -> dict:
    return {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": answer.format(i=i)}]}


def listing(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def run(write_jsonl, tmp_path, small_folder):
    def run(rows: list, **options: object) -> Manifest:
        return prepare([write_jsonl("data.jsonl", rows)], tmp_path / "out", small_folder, Options(**options), progress=False)

    return run


def test_manifest_sums_are_the_datas(run, tmp_path, small_folder):
    manifest = run([conversation(i) for i in range(600)], thinking=False)
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    assert rows.features["ids"].feature.dtype == "int32" and rows.features["loss_mask"].feature.dtype == "bool"
    assert manifest.samples == len(rows) == 600
    assert manifest.tokens == sum(rows["length"]) == sum(len(ids) for ids in rows["ids"])
    assert manifest.loss_tokens == sum(rows["loss_tokens"]) == sum(sum(mask) for mask in rows["loss_mask"])
    assert manifest.mask_share == manifest.loss_tokens / manifest.tokens
    assert manifest.rejected == manifest.filtered == {}
    assert manifest.tokenizer_hash == tokenizer_hash(small_folder)
    assert manifest.template_hash == ChatFormat.load(small_folder, False, False).template_hash
    assert Manifest.load(tmp_path / "out") == manifest
    assert not (tmp_path / "out.partial").exists()


def test_samples_are_the_encoded_conversations_in_order(run, tmp_path, small_folder):
    conversations = [conversation(i) for i in range(20)]
    run(conversations)
    chat = ChatFormat.load(small_folder, None, False)
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    for i, row in enumerate(rows):
        (expected,) = chat.encode(chat.texts(conversations[i]["messages"]))
        assert (row["ids"], row["loss_mask"]) == (expected.ids, expected.loss_mask)
        assert row["where"] == f"{tmp_path / 'data.jsonl'}:{i + 1}"


def test_every_row_left_out_is_counted_and_listed(run, tmp_path):
    bad = [
        "{",
        "[]",
        {"x": 1},
        conversation(1, " "),
        {"prompt_ids": [1, 2], "response_ids": [VOCABULARY]},
        {"prompt_ids": [-1], "response_ids": [3]},
    ]
    manifest = run([*(conversation(i) for i in range(20)), *bad, conversation(3), "not json"], max_rejected=0.5)
    assert manifest.samples == 20
    assert manifest.rejected == {
        "not valid JSON": 2,
        "not a JSON object": 1,
        "no key 'messages', 'conversations' or 'data'": 1,
        "empty assistant content": 1,
        "token id outside the target's vocabulary": 2,
    }
    assert manifest.filtered == {"exact duplicate": 1}
    entries = listing(tmp_path / "out")
    counts = Counter((entry["kind"], entry["reason"].split(": ")[0]) for entry in entries)
    assert counts == {("rejected", k): n for k, n in manifest.rejected.items()} | {("filtered", "exact duplicate"): 1}
    assert [entry["where"].rpartition(":")[2] for entry in entries] == [str(line) for line in range(21, 29)]
    assert entries[4]["reason"] == f"token id outside the target's vocabulary: ids reach from 1 to {VOCABULARY} of {VOCABULARY}"


def test_token_truth_wins_over_tokenizing(run, tmp_path, small_folder):
    run([{**conversation(1), "prompt_ids": [1, 5], "response_ids": [7, 9, 2], "tokenizer": tokenizer_hash(small_folder)}])
    (row,) = datasets.load_from_disk(str(tmp_path / "out"))
    assert row["ids"] == [1, 5, 7, 9, 2] and row["loss_mask"] == [False, False, True, True, True]


def test_token_rows_are_of_the_targets_tokenizer(run, tmp_path, small_folder):
    """By name where the row has one, by its own last message where it has none, and on trust where it has neither."""
    tokenizer = ChatFormat.load(small_folder, None, False).tokenizer
    prompt, answer = tokenizer("Question 1?").input_ids, tokenizer("The answer is 1,\nas always.<|im_end|>").input_ids
    ids = {"prompt_ids": prompt, "response_ids": answer}
    asked = {"messages": conversation(1)["messages"][:1]}
    good = [{**conversation(1), **ids}, {**asked, **ids, "response_ids": [7, 9]}, {"prompt_ids": [1], "response_ids": [7, 8]}]
    bad = [
        {**ids, "tokenizer": "0123456789abcdef"},
        {**conversation(1, "Another answer."), **ids},
        {**asked, **ids, "prompt_ids": [7]},
    ]
    manifest = run([*good, *bad], max_rejected=0.5)
    rows = datasets.load_from_disk(str(tmp_path / "out"))
    assert [row["ids"] for row in rows] == [prompt + answer, [*prompt, 7, 9], [1, 7, 8]]
    assert manifest.rejected == {"token ids of another tokenizer": 1, "token ids are not the row's own messages": 2}
    own = tokenizer_hash(small_folder)
    assert f"the row names '0123456789abcdef' and the target has '{own}'" in listing(tmp_path / "out")[0]["reason"]


def test_filters(run, tmp_path, small_folder):
    short, long = conversation(1, "No."), conversation(2, "word " * 100)
    chat = ChatFormat.load(small_folder, None, False)
    (encoded,) = chat.encode(chat.texts(long["messages"]))
    prompt_length = encoded.loss_mask.index(True)
    manifest = run([short, long], min_loss_tokens=50)
    assert (manifest.samples, manifest.filtered) == (1, {"shorter than min_loss_tokens": 1})
    manifest = run([short, long], max_length=prompt_length + 4)
    assert (manifest.samples, max(datasets.load_from_disk(str(tmp_path / "out"))["length"])) == (2, prompt_length + 4)
    with pytest.raises(UserError, match="no sample is left of 2 rows .0 rejected, 2 filtered.*truncation to max_length leaves"):
        run([short, long], max_length=prompt_length)


def test_split_conversations_are_counted(write_jsonl, tmp_path, other_target):
    """The other target's template ends its prompt in newlines that merge with the answer, so each turn becomes a sample."""
    messages = conversation(1)["messages"] + conversation(2)["messages"]
    manifest = prepare([write_jsonl("data.jsonl", [{"messages": messages}])], tmp_path / "out", other_target, progress=True)
    assert (manifest.samples, manifest.split_conversations) == (2, 1)
    assert prepare(manifest.inputs, tmp_path / "last", other_target, Options(last_turn_only=True), progress=False).samples == 1


def test_fingerprint_depends_on_the_data_alone(run):
    rows = [conversation(i) for i in range(5)]
    first = run(rows)
    assert run(rows) == first
    assert run(rows[::-1]).fingerprint != first.fingerprint
    assert run(["{", *rows], max_rejected=1).fingerprint == first.fingerprint


def test_too_many_rejected_rows_leave_the_old_dataset_alone(run, tmp_path):
    run([conversation(i) for i in range(5)])
    before = snapshot(tmp_path / "out")
    with pytest.raises(
        UserError,
        match=r"2 of 12 rows are rejected.*'not valid JSON' \(2 times, first at .*data.jsonl:11\).*; all are listed in .*out.rejected",
    ):
        run([*(conversation(i) for i in range(10)), "{", "}"])
    assert snapshot(tmp_path / "out") == before
    assert len((tmp_path / "out.rejected").read_text().splitlines()) == 2 and not (tmp_path / "out.partial").exists()


def test_interrupted_run_leaves_the_old_dataset_alone(run, write_jsonl, tmp_path, small_folder):
    run([conversation(i) for i in range(5)])
    before = snapshot(tmp_path / "out")
    inputs = [write_jsonl("data.jsonl", [conversation(9)]), write_jsonl("empty.jsonl", [])]
    with pytest.raises(UserError, match="empty.jsonl is empty"):
        prepare(inputs, tmp_path / "out", small_folder, progress=False)
    assert snapshot(tmp_path / "out") == before
    assert run([conversation(7)]).samples == 1  # the next run does not stumble over the unfinished one


def test_no_sample_left(run):
    prompts = "these are prompts: let the target answer them with `torchspec regenerate`, and take what it writes; all are"
    with pytest.raises(
        UserError, match=f"no sample is left of 2 rows .2 rejected, 0 filtered.*'no assistant turn' .2 times, first at.*{prompts}"
    ):
        run([{"messages": [{"role": "user", "content": "x"}]}] * 2, max_rejected=1)


def test_a_folder_with_other_content_is_not_replaced(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UserError, match="exists and is no prepared dataset"):
        run([conversation(1)])
    assert (tmp_path / "out" / "thesis.tex").read_text() == "ten years of work"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_planted_uniform_mask_is_found(run, share):
    with pytest.raises(ContractError, match="tokens are supervised"):
        replace(run([conversation(1)]), mask_share=share).check()


def test_manifest_of_a_foreign_folder_or_version(run, tmp_path):
    with pytest.raises(UserError, match="is no prepared dataset"):
        Manifest.load(tmp_path)
    run([conversation(1)])
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with pytest.raises(UserError, match="format version 99"):
        Manifest.load(tmp_path / "out")


def test_target_without_vocab_size(write_jsonl, tmp_path, other_target):
    (other_target / "config.json").unlink()
    with pytest.raises(UserError, match="config.json"):
        prepare([write_jsonl("data.jsonl", [conversation(1)])], tmp_path / "out", other_target, progress=False)


def test_cut_samples_are_counted(run, small_folder):
    """Oracle: the lengths of the uncut samples."""
    conversations = [conversation(i, "word " * (5 * i) + "{i}") for i in range(1, 9)]
    chat = ChatFormat.load(small_folder, None, False)
    lengths = [len(sample.ids) for c in conversations for sample in chat.encode(chat.texts(c["messages"]))]
    limit = sorted(lengths)[4]
    assert run(conversations, max_length=limit).truncated == sum(length > limit for length in lengths) == 3
    assert run(conversations).truncated == 0


def test_processes_prepare_the_same_bytes(write_jsonl, tmp_path, small_folder, monkeypatch):
    """More rows than are encoded before the processes start; broken ones among them."""
    monkeypatch.setattr(encode, "ROWS_ALONE", CHUNK)
    rows = [conversation(i) if i % 50 else "{" for i in range(3 * CHUNK + 7)]
    path = write_jsonl("data.jsonl", rows)
    alone = prepare([path], tmp_path / "alone", small_folder, workers=1, progress=False)
    together = prepare([path], tmp_path / "together", small_folder, workers=2, progress=False)
    assert together == alone and alone.rejected == {"not valid JSON": (len(rows) + 49) // 50}
    arrow = "data-00000-of-00001.arrow"
    assert (tmp_path / "together" / arrow).read_bytes() == (tmp_path / "alone" / arrow).read_bytes()
    assert listing(tmp_path / "together") == listing(tmp_path / "alone")


def test_limit_takes_the_first_rows(write_jsonl, tmp_path, small_folder):
    path = write_jsonl("data.jsonl", [conversation(i) for i in range(9)])
    assert prepare([path], tmp_path / "out", small_folder, limit=4, progress=False).samples == 4


def test_a_killed_process_is_one_sentence(small_folder):
    """As the kernel does when memory runs out: the reader kills the pool after the rows of its first chunks."""

    def rows():
        for i in range(ROWS_ALONE + 20 * CHUNK):
            if i == ROWS_ALONE + 3 * CHUNK:
                for child in psutil.Process().children():
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
            yield Row(f"here:{i}", problem="broken")

    with pytest.raises(UserError, match="one of 2 preparing processes died.*--workers 1"):
        list(encode_rows(rows(), small_folder, Options(), VOCABULARY, workers=2))


def test_progress_tells_the_time_that_is_left():
    assert with_time_left("preparing: 1,000 rows", 1000, 4000, 10.0) == "preparing: 1,000 rows, 25%, eta 0:30"
    assert with_time_left("reading: 1,000 rows", 1000, None, 10.0) == "reading: 1,000 rows"
    assert list(with_progress(iter(range(5)), "reading", None, True)) == list(range(5))


def test_processes_that_prepare_end_with_the_one_that_asked_though_it_was_killed():
    """Their end of the pipe closes when they end."""
    here, there = multiprocessing.Pipe(duplex=False)
    asking = multiprocessing.get_context("fork").Process(target=_ask_and_be_killed, args=(there,))
    asking.start()
    there.close()
    assert here.recv() == "preparing" and here.poll(60)
    with pytest.raises(EOFError):
        here.recv()


def _ask_and_be_killed(end):
    started = multiprocessing.get_context("fork").Event()
    multiprocessing.get_context("fork").Process(target=_prepare_for_ever, args=(end, started)).start()
    started.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def _prepare_for_ever(end, started):
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    end.send("preparing")
    started.set()
    threading.Event().wait()
