"""`torchspec doctor` passes what works and turns red, with exit code 1, for what was broken on purpose."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.test_cli import torchspec
from tests.tiny import recipe, write_chats, write_tiny_target
from torchspec.config import load_config
from torchspec.doctor.rehearsal import rehearse
from torchspec.doctor.run import examine
from torchspec.doctor.tiny import tiny_config
from torchspec.doctor.tiny import write_tiny_target as write_random_target
from torchspec.methods.block import generate, method


@pytest.fixture(scope="module")
def work(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    target = write_tiny_target(folder / "target", target_folder)
    recipe(folder / "run.yaml", target, write_chats(folder / "train.jsonl", 24), write_chats(folder / "heldout.jsonl", 2, first=100))
    return folder


def test_the_installation_alone_is_rehearsed_with_a_random_target():
    result = torchspec("doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "none is red" in result.stdout and "τ 4.00 of 4" in result.stdout and "identical to plain" in result.stdout


def test_a_run_that_works_has_no_red_row_and_leaves_nothing_behind(work):
    result = torchspec("doctor", "-c", work / "run.yaml")
    assert result.returncode == 0, result.stdout + result.stderr
    for words in (
        "chat template",
        "draft's shape",
        "draft's cost",
        "LM head",
        "layer ids",
        "mask share",
        "no leak among 2 held-out prompts",
        "on-policy",
        "memory",
        "disk",
        "τ 4.00 of 4",
    ):
        assert words in result.stdout, words
    assert "look" in result.stdout  # the answers are not the target's own
    assert not (work / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.train_data_path=nowhere.jsonl", "no file at"),
        ("model.target_model_path=nowhere", "holds no config.json"),
        ("model.device=cuda:7", "cuda:7"),
    ],
)
def test_what_a_run_would_stumble_over_is_red(work, tmp_path, override, words):
    findings = examine(load_config(str(work / "run.yaml"), [override]), tmp_path)
    assert any(f.verdict == "bad" and words in f.fix for f in findings), findings


def test_an_engine_that_is_missing_and_unusable_rows_are_red(work, tmp_path):
    (tmp_path / "half.jsonl").write_text((work / "train.jsonl").read_text() + "no json\n" * 10)
    overrides = [f"dataset.train_data_path={tmp_path / 'half.jsonl'}", "inference.inference_engine_type=vllm"]
    findings = examine(load_config(str(work / "run.yaml"), overrides), tmp_path)
    assert any(f.verdict == "bad" and "pip install 'torchspec[vllm]'" in f.fix for f in findings), findings
    (row,) = [f for f in findings if f.check == "half.jsonl: rows"]
    assert (row.verdict, row.found) == ("bad", "24 samples, 10 rows rejected, 0 cut") and "not valid JSON" in row.fix


def test_the_exit_code_tells(work):
    result = torchspec("doctor", "-c", work / "run.yaml", "draft.target_layer_ids=[1,5]")
    assert result.returncode == 1 and "checks are red" in result.stdout
    assert "draft.target_layer_ids=[1, 5]" in " ".join(result.stdout.split())
    assert torchspec("doctor", "draft.block_size=4").returncode == 2


def rehearsal(tmp_path) -> dict[str, tuple[str, str]]:
    target = write_random_target(tmp_path / "tiny")
    return {f.check: (f.verdict, f.fix) for f in rehearse(tiny_config(target), target, 4, tmp_path)}


def test_planted_labels_of_the_next_slot_are_found(tmp_path, monkeypatch):
    right = method.block_labels

    def planted(batch, layout):
        slots = right(batch, layout)
        return replace(slots, labels=slots.labels.roll(-1, dims=-1))

    monkeypatch.setattr(method, "block_labels", planted)
    assert rehearsal(tmp_path)["one sample by heart"] == (
        "bad", "a draft that cannot learn one sample sees the wrong features, labels or positions",
    )  # fmt: skip


def test_a_planted_slip_of_the_drafts_cache_is_found(tmp_path, monkeypatch):
    """Serving that feeds the features of the token before."""
    right = generate.BlockDrafter.extend
    monkeypatch.setattr(generate.BlockDrafter, "extend", lambda self, ids, context: right(self, ids, context.roll(1, dims=0)))
    found = rehearsal(tmp_path)
    assert found["one sample by heart"][0] == "ok" and found["decode"] == ("bad", "drafting with a cache differs from training")
