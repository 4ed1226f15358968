"""Oracle: the samples read back are the conversations encoded directly, and the counts are counted one by one."""

import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console

from tests.tiny import VOCABULARY
from torchspec.chat.format import ChatFormat
from torchspec.cli.main import main
from torchspec.config import RunConfig
from torchspec.data.dataset import MixedDataset, PromptDataset, check_prepared_as, open_or_prepare
from torchspec.data.encode import Options
from torchspec.data.prepare import prepare
from torchspec.data.show import show
from torchspec.errors import ContractError, UserError
from torchspec.training.build import open_one

CONVERSATIONS = [
    [{"role": "user", "content": f"Question {i} [bold]?"}, {"role": "assistant", "content": f"Yes,\nit is {i}. 🙂"}] for i in range(300)
]


@pytest.fixture
def source(write_jsonl) -> str:
    return write_jsonl("data.jsonl", [{"messages": messages} for messages in CONVERSATIONS[:20]])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, small_folder) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "data.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in CONVERSATIONS))
    prepare([str(folder / "data.jsonl")], folder / "out", small_folder, progress=False)
    return folder / "out"


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    """A copy of its own, to be damaged."""
    return shutil.copytree(prepared, tmp_path / "prepared")


def test_samples_are_the_encoded_conversations(folder, small_folder):
    dataset, chat = PromptDataset(folder), ChatFormat.load(small_folder, None, False)
    assert len(dataset) == len(CONVERSATIONS) == dataset.manifest.samples
    for i in (0, 1, 299):
        (expected,) = chat.encode(chat.texts(CONVERSATIONS[i]))
        prompt = dataset[i]
        assert (prompt.index, prompt.ids.tolist(), prompt.loss_mask.tolist()) == (i, expected.ids, expected.loss_mask)
        assert (prompt.ids.dtype, prompt.loss_mask.dtype) == (torch.int64, torch.bool)
        assert (dataset.lengths[i], dataset.loss_tokens[i]) == (len(expected.ids), sum(expected.loss_mask))
    assert dataset.lengths.dtype == dataset.loss_tokens.dtype == "int64"
    assert dataset[-1].index == 299
    with pytest.raises(IndexError):
        dataset[300]


def test_token_counts(folder):
    dataset = PromptDataset(folder)
    expected = Counter(token for i in range(len(dataset)) for token in dataset[i].ids.tolist())
    counts = dataset.token_counts(VOCABULARY)
    assert counts.shape == (VOCABULARY,) and counts.sum() == dataset.manifest.tokens
    assert {token: int(counts[token]) for token in counts.nonzero().flatten().tolist()} == expected
    supervised = Counter(token for i in range(len(dataset)) for token in dataset[i].ids[dataset[i].loss_mask].tolist())
    counts = dataset.token_counts(VOCABULARY, supervised=True)
    assert {token: int(counts[token]) for token in counts.nonzero().flatten().tolist()} == supervised and supervised != expected
    with pytest.raises(ContractError, match="but the vocabulary has 100 tokens"):
        dataset.token_counts(100)


def test_dataset_travels_to_a_worker(folder):
    dataset = PromptDataset(folder)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[7].ids, dataset[7].ids)


@pytest.mark.parametrize("lost", ["manifest.json", "data-00000-of-00001.arrow", "state.json"])
def test_incomplete_folder(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(UserError, match="no prepared dataset" if lost == "manifest.json" else "incomplete prepared dataset"):
        PromptDataset(folder)


def test_folder_that_lost_samples(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"samples": 301}))
    with pytest.raises(UserError, match="holds 300 samples of the 301 in its manifest"):
        PromptDataset(folder)


def test_prepares_once_per_content_and_options(source, tmp_path, small_folder):
    def open_(**options: object) -> PromptDataset:
        return open_or_prepare(source, tmp_path / "cache", small_folder, Options(**options), progress=False)

    first = open_()
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    assert open_().folder == first.folder and (first.folder / "manifest.json").stat().st_mtime_ns == written
    assert open_(max_length=60).folder != first.folder
    with open(source, "a") as file:
        file.write(json.dumps({"messages": CONVERSATIONS[0][:1] + [{"role": "assistant", "content": "New."}]}) + "\n")
    assert len(open_()) == len(first) + 1


def test_the_same_text_is_known_though_other_options_make_other_samples(source, tmp_path, small_folder):
    whole, cut = (open_or_prepare(source, tmp_path, small_folder, Options(max_length=n), progress=False).manifest for n in (None, 60))
    assert whole.fingerprint != cut.fingerprint and set(whole.known_by) & set(cut.known_by)
    copy = shutil.copy(source, tmp_path / "renamed.jsonl")
    assert open_or_prepare(str(copy), tmp_path, small_folder, progress=False).manifest.known_by == whole.known_by
    Path(source).write_text("".join(Path(source).read_text().splitlines(keepends=True)[1:]))
    other = open_or_prepare(source, tmp_path, small_folder, progress=False).manifest
    assert not set(whole.known_by) & set(other.known_by)


def test_what_a_killed_run_had_begun_to_prepare_goes_unless_another_prepares_it(source, tmp_path, small_folder):
    cache = tmp_path / "cache"
    for name in ("killed", "busy"):
        (cache / f"{name}.partial" / "raw").mkdir(parents=True)
    with FileLock(cache / "busy.lock"):
        open_or_prepare(source, cache, small_folder, progress=False)
    assert [left.name for left in cache.glob("*.partial")] == ["busy.partial"]


def test_same_size_and_time_with_other_contents_is_prepared_anew(source, tmp_path, small_folder):
    """Also through the `datasets` library, which knows files by their time."""
    folder, contents, seen = tmp_path / "set", Path(source).read_text(), []
    folder.mkdir()
    for question in ("Question", "Problem!"):
        for file in (Path(source), folder / "train.jsonl"):
            file.write_text(contents.replace("Question", question))
            os.utime(file, ns=(10**18, 10**18))
        seen += [open_or_prepare(str(path), tmp_path / "cache", small_folder, progress=False).manifest for path in (source, folder)]
    assert [m.samples for m in seen] == [20] * 4 and seen[0].fingerprint == seen[1].fingerprint != seen[2].fingerprint == seen[
        3
    ].fingerprint


def test_prepared_folder_must_fit_the_target(folder, tmp_path, small_folder, other_target):
    cache = tmp_path / "cache"
    assert len(open_or_prepare(str(folder), cache, small_folder)) == len(CONVERSATIONS)
    with pytest.raises(ContractError, match=r"prepared for .*template_hash \w+\) but the target is .*other .*template_hash \w+\)"):
        open_or_prepare(str(folder), cache, other_target)
    with pytest.raises(ContractError, match=r"thinking=None, template_hash .*thinking=False, template_hash"):
        open_or_prepare(str(folder), cache, small_folder, Options(thinking=False))
    content = (other_target / "tokenizer.json").read_text()
    os.unlink(other_target / "tokenizer.json")
    (other_target / "tokenizer.json").write_text(content + "\n")
    with pytest.raises(ContractError, match="tokenizer_hash"):
        open_or_prepare(str(folder), cache, other_target)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"last_turn_only": True}, "dataset.last_turn_only is True but False in"),
        ({"min_loss_tokens": 32}, "dataset.min_loss_tokens is 32 but 2 in"),
        ({"max_length": 40}, "dataset.max_length is 40 but 60 in"),
        (
            {"max_length": 40, "min_loss_tokens": 3},
            "min_loss_tokens is 3 but 2 in .* and dataset.max_length is 40 but 60 in",
        ),
    ],
)
def test_a_folder_prepared_otherwise_than_the_run_says_is_refused_with_both_values(source, tmp_path, small_folder, changed, sentence):
    """A run's record would say what was not done."""
    prepare([source], tmp_path / "out", small_folder, Options(max_length=60), progress=False)
    dataset = PromptDataset(tmp_path / "out")
    check_prepared_as(dataset, Options(max_length=60), small_folder)
    with pytest.raises(UserError, match=sentence):
        check_prepared_as(dataset, Options(**{"max_length": 60, **changed}), small_folder)


def test_nothing_said_when_preparing_and_nothing_said_in_the_run_is_the_same(source, tmp_path, small_folder, monkeypatch):
    monkeypatch.setattr("sys.argv", ["torchspec", "prepare", source, "-t", str(small_folder), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    config = RunConfig(
        output_dir=str(tmp_path), model={"target_model_path": str(small_folder)}, dataset={"train_data_path": str(tmp_path / "out")}
    )
    assert len(open_one(config.dataset.train_data_path, config, small_folder)) == 20
    longer = config.model_copy(update={"dataset": config.dataset.model_copy(update={"min_loss_tokens": 3})})
    with pytest.raises(UserError, match="dataset.min_loss_tokens is 3 but 2 in"):
        open_one(config.dataset.train_data_path, longer, small_folder)


def test_open_or_prepare_names_a_missing_file(tmp_path, small_folder):
    with pytest.raises(UserError, match=f"no file at {tmp_path}/missing.jsonl"):
        open_or_prepare(str(tmp_path / "missing.jsonl"), tmp_path, small_folder)


def test_show(folder):
    dataset = PromptDataset(folder)
    console = Console(record=True, width=200, file=open(os.devnull, "w"), color_system="standard", force_terminal=True)
    show(folder, 2, console)
    styled = console.export_text(styles=True, clear=False)
    supervised = int(dataset.loss_tokens[0])
    length = int(dataset.lengths[0])
    header = f"sample 0 · {dataset.manifest.inputs[0]}:1 · {length} tokens · {supervised} supervised ({supervised / length:.0%})"
    plain = console.export_text()
    assert header in plain
    assert "Question 0 [bold]?<|im_end|>⏎\n<|im_start|>assistant⏎\nYes,⏎\nit is 0. 🙂<|im_end|>" in plain
    assert "\x1b[32mit is 0. 🙂<|im_end|>\x1b[0m" in styled and "\x1b[2m<|im_start|>assistant⏎\x1b[0m" in styled
    assert "sample 1 ·" in plain and "sample 2 ·" not in plain


def test_mixed_datasets_are_one_after_the_other(prepared, source, tmp_path, small_folder):
    one, two = PromptDataset(prepared), open_or_prepare(source, tmp_path / "cache", small_folder, progress=False)
    both = pickle.loads(pickle.dumps(MixedDataset([one, two], [1.0, 0.5])))
    assert len(both) == 320 and [(p.samples, p.passes) for p in both.parts] == [(300, 1.0), (20, 0.5)]
    for i, (dataset, own) in {0: (one, 0), 299: (one, 299), 300: (two, 0), 319: (two, 19)}.items():
        assert torch.equal(both[i].ids, dataset[own].ids) and both[i].index == i and both.where(i) == dataset.where(own)
    assert (both.lengths == [*one.lengths, *two.lengths]).all() and both.manifest.tokens == both.lengths.sum()
    assert torch.equal(both.token_counts(VOCABULARY), one.token_counts(VOCABULARY) + two.token_counts(VOCABULARY))
    other = MixedDataset([one, two], [1.0, 0.25])
    assert len({d.manifest.fingerprint for d in (one, two, both, other)}) == 4
