"""Oracle: conservation. Both sides together are the whole, and no prompt is on both, however the rows are ordered and spread over files."""

import random
from pathlib import Path

import pytest

from torchspec.config import RunConfig
from torchspec.data.dataset import PromptDataset
from torchspec.data.encode import Options
from torchspec.data.prepare import prepare
from torchspec.data.split import Split, fraction
from torchspec.errors import UserError
from torchspec.rows.formats import to_row
from torchspec.training.build import open_datasets

SHARE = 0.3


def chat(question: str, *further: str) -> dict:
    turns = [question, "An answer."] + [text for more in further for text in (more, "Another one.")]
    return {"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant") * len(turns), turns, strict=False)]}


ROWS = [chat(f"Question {i}?") for i in range(40)] + [chat(f"Question {i}?", "And then?") for i in range(0, 40, 4)]


def samples(dataset: PromptDataset) -> set[tuple[int, ...]]:
    return {tuple(dataset[i].ids.tolist()) for i in range(len(dataset))}


def side(inputs: list[str], out: Path, target: Path, held_out: bool) -> set[tuple[int, ...]]:
    prepare(inputs, out, target, Options(split=Split(SHARE, held_out)), progress=False)
    return samples(PromptDataset(out))


def test_the_sides_are_a_partition_which_neither_the_order_nor_the_files_change(write_jsonl, tmp_path, small_folder):
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    parts = ([write_jsonl("all.jsonl", ROWS)], [write_jsonl("a.jsonl", shuffled[:7]), write_jsonl("b.jsonl", shuffled[7:])])
    (rest, held_out), again = ([side(inputs, tmp_path / "out", small_folder, held) for held in (False, True)] for inputs in parts)
    prepare(parts[0], tmp_path / "out", small_folder, progress=False)
    assert again == [rest, held_out] and not rest & held_out and rest | held_out == samples(PromptDataset(tmp_path / "out"))
    assert 5 < len(held_out) < 25


def test_a_prompt_is_on_one_side_in_every_form_spelling_and_turn():
    split = Split(SHARE, held_out=True)
    for i in range(40):
        question = f"Question {i}?"
        forms = [chat(question), chat(f" question  {i}!"), chat(question, "More?"), {"data": [question, "Yes."]}]
        forms += [{"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "x"}], "system": "Be brief."}]
        forms += [{**chat(question, "More?"), "prompt_ids": [i, turn], "response_ids": [1], "tokenizer": "x"} for turn in (1, 2)]
        assert len({split.has(to_row("here", form)) for form in forms}) == 1


def test_the_share_is_of_the_prompts_and_a_larger_one_holds_the_smaller():
    fractions = [fraction(f"Question {i}?") for i in range(10_000)]
    held_out = {share: {i for i, value in enumerate(fractions) if value < share} for share in (0.01, 0.1, 0.5)}
    assert held_out[0.01] < held_out[0.1] < held_out[0.5]
    for share, found in held_out.items():
        assert abs(len(found) - 10_000 * share) < 4 * (10_000 * share * (1 - share)) ** 0.5  # standard deviations


def test_a_row_that_cannot_be_read_is_counted_on_one_side(write_jsonl, tmp_path, small_folder):
    source = write_jsonl("data.jsonl", [*ROWS, "no JSON"])
    for held_out in (False, True):
        options = Options(split=Split(SHARE, held_out))
        assert sum(prepare([source], tmp_path / "out", small_folder, options, progress=False).rejected.values()) == (not held_out)


def config(folder: Path, target: Path, **dataset) -> RunConfig:
    return RunConfig(output_dir=str(folder / "run"), model={"target_model_path": str(target)}, dataset=dataset)


def test_a_run_trains_on_the_one_side_of_all_its_sources_and_measures_on_the_other(write_jsonl, tmp_path, small_folder):
    one, two = write_jsonl("one.jsonl", ROWS[:30]), write_jsonl("two.jsonl", ROWS[30:])
    run = config(tmp_path, small_folder, train_data_path=one, mix={two: 2.0}, eval_share=SHARE)
    train, held_out = open_datasets(run, small_folder)
    prepare([one, two], tmp_path / "out", small_folder, progress=False)
    assert not samples(train) & samples(held_out) and samples(train) | samples(held_out) == samples(PromptDataset(tmp_path / "out"))
    assert "-held-out-" in held_out.folder.name


def test_what_cannot_be_split_is_refused(write_jsonl, tmp_path, small_folder):
    source = write_jsonl("data.jsonl", ROWS)
    prepare([source], tmp_path / "prepared", small_folder, progress=False)
    prepared = config(tmp_path, small_folder, train_data_path=str(tmp_path / "prepared"), eval_share=SHARE)
    with pytest.raises(UserError, match="eval_share splits conversations, and .*prepared is prepared already; train on what it was made"):
        open_datasets(prepared, small_folder)
    with pytest.raises(UserError, match="dataset.eval_share=1e-09 holds out no prompt of .*data.jsonl; raise it"):
        open_datasets(config(tmp_path, small_folder, train_data_path=source, eval_share=1e-9), small_folder)
