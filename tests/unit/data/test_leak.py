"""Planted leaks are found and nothing else is. Oracles: the plan by which they were planted, and a count over sets of word tuples."""

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from torchspec.config import RunConfig
from torchspec.data import leak
from torchspec.data.dataset import MixedDataset, PromptDataset
from torchspec.data.leak import Leak, find_leak, leak_into
from torchspec.data.prepare import prepare
from torchspec.data.words import BASE, GRAM, _hashes
from torchspec.doctor.data import leaks, open_first_rows

WORDS = "time year people way day man thing woman life child world school state family student group country problem hand part".split()
RANDOM = random.Random(0)


def text(words: int) -> str:
    return " ".join(RANDOM.choices(WORDS, k=words))


def chat(question: str, system: str | None = None) -> dict:
    before = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*before, {"role": "user", "content": question}, {"role": "assistant", "content": f"It is {text(9)}."}]}


CHINESE = "请用简单的话解释为什么天空在白天是蓝色而在黄昏时变成红色"
TRAIN = [text(40) for _ in range(30)] + ["Hello there!", CHINESE]
HELD_OUT = [  # row -> a question, and whether it leaks
    (text(40), ""),
    (TRAIN[3].upper().replace(" ", "\n"), "duplicate"),
    (" ".join(TRAIN[5].split()[:32]) + " " + text(8), "overlap"),
    (" ".join(TRAIN[6].split()[:20]) + " " + text(20), ""),  # 8 of 28 grams, and those of the frame
    ("hello there!", "duplicate"),  # too short for a gram
    ("Hello here!", ""),
    (CHINESE[:4] + "、" + CHINESE[4:] + "?", "overlap"),  # each character is a word
    (text(12) + " " + TRAIN[7], "overlap"),
]
DUPLICATES, OVERLAPPING = ([i for i, (_, kind) in enumerate(HELD_OUT) if kind == wanted] for wanted in ("duplicate", "overlap"))


@pytest.fixture
def make(write_jsonl, tmp_path, small_folder):
    """make(name, questions, system) -> prepared dataset"""

    def make(name: str, questions: list[str], system: str | None = None) -> PromptDataset:
        prepare([write_jsonl(f"{name}.jsonl", [chat(q, system) for q in questions])], tmp_path / name, small_folder, progress=False)
        return PromptDataset(tmp_path / name)

    return make


def by_sets(train: PromptDataset, held_out: PromptDataset, target: Path) -> tuple[int, int]:
    """Duplicates and overlaps, counted with tuples of words."""
    tokenizer = AutoTokenizer.from_pretrained(target)

    def words(dataset: PromptDataset, i: int) -> tuple[str, ...]:
        ids = dataset[i].ids[~dataset[i].loss_mask].tolist()
        text = "".join(" " if t in tokenizer.all_special_ids else tokenizer.decode([t]) for t in ids).lower()
        return tuple(re.findall(r"[\u0800-\uffff]|[a-z0-9\u0080-\u07ff]+", text))

    def grams(text: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [text[i : i + GRAM] for i in range(len(text) - GRAM + 1)]

    texts = [words(train, i) for i in range(len(train))]
    spread = Counter(gram for text in texts for gram in set(grams(text)))
    duplicates = overlaps = 0
    for i in range(len(held_out)):
        own = words(held_out, i)
        counted = [spread[gram] for gram in grams(own) if spread[gram] <= min(leak.FRAME, len(train) // 2)]
        duplicates += own in texts
        overlaps += own not in texts and counted and sum(map(bool, counted)) >= leak.SHARE * len(counted)
    return duplicates, overlaps


def test_planted_leaks_are_found_with_their_rows(make, tmp_path, small_folder):
    train, held_out = make("train", TRAIN), make("heldout", [question for question, _ in HELD_OUT])
    found = find_leak(train, held_out, small_folder)
    assert (found.duplicates, found.overlapping) == (len(DUPLICATES), len(OVERLAPPING)) == by_sets(train, held_out, small_folder)
    source = {1: 4, 2: 6, 4: 31, 6: 32, 7: 8}  # lines of train.jsonl, from 1
    assert found.rows == [(f"{tmp_path}/heldout.jsonl:{i + 1}", f"{tmp_path}/train.jsonl:{line}") for i, line in source.items()]
    assert (found.samples, found.prompts, found.every, found.count) == (32, 8, 1, 5)
    said = found.sentence()
    assert said.startswith("5 of 8 held-out prompts stand in the training data, 2 word for word and 3 by 50% or more of their 13-grams: ")
    assert f"{tmp_path}/heldout.jsonl against 32 samples of {tmp_path}/train.jsonl" in said and "heldout.jsonl:2 is in " in said


def test_new_questions_under_the_same_long_system_prompt_leak_nothing(make, small_folder):
    system = text(60)
    train, held_out = make("train", TRAIN, system), make("heldout", [text(20) for _ in range(8)], system)
    found = find_leak(train, held_out, small_folder)
    assert found.count == 0 == sum(by_sets(train, held_out, small_folder))
    assert found.sentence().startswith("no leak among 8 held-out prompts: ")


def test_every_source_of_a_mix_is_looked_through(make, tmp_path, small_folder):
    train, held_out = make("train", TRAIN[:20]), make("heldout", [question for question, _ in HELD_OUT])
    mix = MixedDataset([train, make("more", TRAIN[20:])], [1.0, 0.5])
    rows = find_leak(mix, held_out, small_folder).rows
    assert (f"{tmp_path}/heldout.jsonl:5", f"{tmp_path}/more.jsonl:11") in rows and len(rows) == 5


def test_a_sample_of_the_grams_stands_for_all_and_the_line_says_so(make, small_folder, monkeypatch):
    monkeypatch.setattr(leak, "MOST", 400)
    train, held_out = make("train", TRAIN), make("heldout", [TRAIN[i] + " indeed" for i in range(20)] + [text(40) for _ in range(20)])
    found = find_leak(train, held_out, small_folder)
    assert found.every > 5 and f"one 13-gram in {found.every} was compared" in found.sentence()
    assert found.duplicates == 0 and 15 <= found.overlapping <= 20  # of 20; a prompt of which no gram was drawn is not judged
    assert all(int(theirs.rpartition(":")[2]) <= 20 for theirs, _ in found.rows)


def test_a_held_out_file_is_prepared_for_the_comparison(make, write_jsonl, tmp_path, small_folder):
    make("train", TRAIN)
    file = write_jsonl("heldout.jsonl", [chat(question) for question, _ in HELD_OUT])
    assert leak_into(tmp_path / "train", file, small_folder, leak.Options()).count == 5


def test_the_doctor_has_a_look(make, write_jsonl, tmp_path, small_folder):
    files = [write_jsonl("a.jsonl", [chat(q) for q in TRAIN]), write_jsonl("b.jsonl", [chat(q) for q, _ in HELD_OUT])]
    verdicts = []
    for number, held_out in enumerate([files[1], write_jsonl("c.jsonl", [chat(text(40))]), None]):
        paths = {"train_data_path": files[0], "eval_data_path": held_out}
        config = RunConfig(output_dir="o", model={"target_model_path": str(small_folder)}, dataset=paths)
        sources = open_first_rows(config, small_folder, tmp_path / f"doctor{number}")
        verdicts.append([finding.verdict for finding in leaks(config, small_folder, tmp_path / f"doctor{number}", sources)])
    assert verdicts == [["look"], ["ok"], []]


def test_a_hash_is_the_polynomial_of_its_span_alone():
    """In Python's integers; and the same words have it wherever they stand."""
    values = np.random.default_rng(1).integers(2**64, size=40, dtype=np.uint64)
    starts, ends = np.array([0, 0, 3, 40, 17]), np.array([40, 13, 16, 40, 30])
    expected = [sum(int(v) * BASE ** (j + 1) for j, v in enumerate(values[s:e])) % 2**64 for s, e in zip(starts, ends, strict=True)]
    assert _hashes(values, starts, ends).tolist() == expected
    assert _hashes(np.concatenate((values[:5], values[3:16])), np.array([5]), np.array([18]))[0] == expected[2]


def test_what_travels_with_a_draft_names_no_file():
    counts = Leak(["a"], ["b"], 9, 8, 2, 1, 1, [("b:1", "a:1")]).counts()
    assert counts == {"samples": 9, "prompts": 8, "duplicates": 2, "overlapping": 1, "every": 1}
