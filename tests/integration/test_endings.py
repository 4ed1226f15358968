"""Every command ends with where its result lies, the number that matters, and a next command. Oracle: the command line takes it."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.exceptions import UsageError
from typer.main import get_command

from tests.integration.test_cli import torchspec
from tests.tiny import recipe, write_chats, write_tiny_target
from torchspec.cli.endings import after_calibration
from torchspec.cli.main import app
from torchspec.export.commands import QUESTION
from torchspec.launch import measure


def ending(*arguments) -> dict[str, str]:
    """The rows that a command ends with."""
    result = torchspec(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.strip().partition("  ") for line in result.stdout.splitlines()]
    first = max(i for i, (name, _, text) in enumerate(rows) if name == "result" or not text or i == 0)
    return {name: text.strip() for name, _, text in rows[first:]}


def parsed(line: str) -> list[str]:
    """The words of a command of ours, which its parser takes."""
    program, name, *words = shlex.split(line, comments=True)
    assert program == "torchspec"
    try:
        get_command(app).commands[name].make_context(name, list(words))
    except UsageError as error:
        raise AssertionError(f"{line}: {error.format_message()}") from error
    return [name, *words]


@pytest.fixture(scope="module")
def work(tmp_path_factory, target_folder) -> Path:
    folder = tmp_path_factory.mktemp("with a space")  # what is printed can be pasted
    target = write_tiny_target(folder / "target", target_folder)
    train, held_out = write_chats(folder / "train.jsonl", 8), write_chats(folder / "heldout.jsonl", 4, first=100)
    return recipe(folder / "run.yaml", target, train, held_out, max_steps=4).parent


@pytest.fixture(scope="module")
def trained(work) -> dict[str, str]:
    return ending("train", "-c", work / "run.yaml")


@pytest.fixture(scope="module")
def exported(trained) -> dict[str, str]:
    """By the command that training ends with."""
    return ending(*parsed(trained["next"]))


def test_training_ends_with_the_best_checkpoint_and_the_export(work, trained):
    (row,) = [row for row in map(json.loads, (work / "run" / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "eval"]
    assert trained["result"] == str(work / "run" / "checkpoints" / "iter_0000004")
    assert trained["τ"].startswith(f"{row['tau']:.2f} [") and trained["τ"].endswith("] on held-out text, step 4")


def test_a_finished_run_says_so_and_what_it_reached(work, trained):
    again = torchspec("train", "-c", work / "run.yaml")
    assert f"this run is finished: {trained['result']} at step 4 of 4" in again.stdout
    assert all(text in again.stdout for text in trained.values())


def test_the_export_ends_with_a_line_for_every_engine(work, exported):
    assert exported["result"] == f"{work / 'run' / 'draft'}, read back and equal"
    for engine, start in {"vLLM": "vllm serve ", "SGLang": "python -m sglang.launch_server ", "llama.cpp": "torchspec export "}.items():
        assert exported[engine].startswith(start) and str(work / "target") in shlex.split(exported[engine])
    ours, _, theirs = exported["llama.cpp"].partition(" && ")
    assert "--with-target" in parsed(ours) and theirs.startswith("llama-server --model ")
    assert parsed(exported["Transformers"])[0] == "generate" and parsed(exported["next"])[0] == "eval"


def test_the_draft_talks_by_the_line_for_transformers(exported):
    words = parsed(exported["Transformers"])
    result = torchspec(*words, "--max-new-tokens", 4, "--dtype", "float32")
    assert result.returncode == 0 and "tok/s" in result.stdout


@pytest.fixture(scope="module")
def evaluated(work, exported) -> dict[str, str]:
    return ending(
        "eval", "-d", work / "run" / "draft", "-t", work / "target", "--data", work / "heldout.jsonl", "-o", work / "eval", "--decode", 1,
        "--max-new-tokens", 4, "--dtype", "float32",
    )  # fmt: skip


def test_an_evaluation_ends_with_its_report_and_the_same_in_an_engine(work, evaluated):
    rows, results = evaluated, json.loads((work / "eval" / "results.json").read_text())
    assert rows["result"] == str(work / "eval" / "report.html")
    assert rows["τ"].startswith(f"{results['offline']['tau']:.2f} [") and f"{results['decode']['speedup']:.2f}x" in rows["speed-up"]
    assert parsed(rows["next"])[-4:] == ["--mode", "vllm", "-o", f"{work / 'eval'}-vllm"]


def test_a_comparison_ends_with_its_page_and_the_best_draft(work, evaluated):
    """Of one evaluation and its copy, in which another draft is worse."""
    results = json.loads((work / "eval" / "results.json").read_text())
    worse = {**results, "draft": "another", "offline": {**results["offline"], "tau": results["offline"]["tau"] - 0.5}}
    (work / "worse.json").write_text(json.dumps(worse))
    rows = ending("compare", work / "worse.json", work / "eval" / "results.json", "-o", work / "compared")
    assert rows == ending("compare", work / "worse.json", work / "eval", "-o", work / "compared")  # named by its folder
    assert rows["result"] == str(work / "compared" / "compare.html") and rows["best τ"].endswith(f", {results['draft']}")
    assert parsed(rows["next"])[:4] == ["generate", QUESTION, "-d", results["draft"]]


def test_a_calibration_ends_with_its_file_and_what_it_is_for(capsys):
    found = {"ece_before": [0.08, 0.04], "ece_after": [0.02, 0.01]}
    after_calibration(SimpleNamespace(draft=Path("a draft")), "target", "held out.jsonl", found)
    result, error, following = (line.strip().partition("  ")[2] for line in capsys.readouterr().out.splitlines())
    assert result == "a draft/sts.json" and error.startswith("6.0% -> 1.5%") and parsed(following)[0] == "eval"


def test_a_measured_plan_ends_with_the_run(work, monkeypatch):
    for seconds in ("CAPTURE_SECONDS", "TRAIN_SECONDS", "EVALUATE_SECONDS"):
        monkeypatch.setattr(measure, seconds, 0.01)
    result = torchspec("plan", "-c", work / "run.yaml", f"output_dir={work / 'measured'}")
    assert "predicted" in result.stdout and parsed(result.stdout.splitlines()[-1].strip().partition("  ")[2])[:2] == ["train", "-c"]


def test_bare_tensors_lead_to_the_folder(work, trained):
    rows = ending("export", "--checkpoint", work / "run" / "checkpoints", "-o", work / "draft.pt")
    assert rows["result"].startswith(str(work / "draft.pt")) and parsed(rows["next"])[0] == "export"


def test_prepared_text_is_trained_on_as_it_was_prepared(work):
    rows = ending("prepare", work / "train.jsonl", "-o", work / "prepared", "-t", work / "target", "--max-length", 64)
    words = parsed(rows["next"])
    assert rows["samples"].startswith("8, ") and rows["result"] == str(work / "prepared")
    assert {f"dataset.train_data_path={work / 'prepared'}", "dataset.max_length=64"} <= set(words)


def test_collected_text_is_regenerated_next(work):
    rows = ending("prepare", work / "train.jsonl", "-o", work / "chats.jsonl")
    assert rows["conversations"] == "8" and parsed(rows["next"])[:2] == ["regenerate", str(work / "chats.jsonl")]


def test_answers_are_trained_on_next(work):
    common = (work / "heldout.jsonl", "-t", work / "target", "--dtype", "float32")
    rows = ending("regenerate", *common, "-o", work / "answers.jsonl", "--max-new-tokens", 4)
    again = torchspec("regenerate", *common, "-o", work / "answers.jsonl", "--max-new-tokens", 4)
    assert not [line for line in again.stdout.splitlines() if line.startswith("regenerate ")]  # no bar, where there is no terminal
    assert rows["answers"] == "4 written, 0 conversations were there" and rows["result"] == str(work / "answers.jsonl")
    assert f"dataset.train_data_path={work / 'answers.jsonl'}" in parsed(rows["next"])
    measured = ending("regenerate", *common, "--measure")
    assert parsed(measured["next"])[0] == "regenerate"


def test_the_plan_is_eight_lines_without_hours_and_the_rest_is_json(work):
    arguments = ("train", "-c", work / "run.yaml", "--plan", f"output_dir={work / 'planned'}")
    result = torchspec(*arguments)
    rows = [line.split()[0] for line in result.stdout.splitlines()]
    assert rows == ["target", "draft", "serving", "data", "topology", "steps", "memory", "disk", "next"]
    assert "hours" not in result.stdout.splitlines()[0:8] and parsed(result.stdout.splitlines()[-1].strip().partition("  ")[2])[0] == "plan"
    plan = json.loads(torchspec(*arguments, "--json").stdout)
    assert {*rows[:8], "shape", "features", "missing", "numbers", "config"} == plan.keys() and plan["missing"] == []
    assert plan["numbers"]["steps"] == 4 and plan["config"]["draft"]["num_layers"] == 2
    assert "--json goes with --plan" in torchspec("train", "-c", work / "run.yaml", "--json").stderr


def test_the_plan_names_a_missing_extra_in_the_words_of_the_refusal(work):
    arguments = ("train", "-c", work / "run.yaml", "tracking.wandb_project=w", f"output_dir={work / 'unwatched'}")
    plan, refusal = torchspec(*arguments, "--plan"), torchspec(*arguments)
    sentence = "tracking.wandb_project=w needs wandb: pip install 'torchspec[wandb]'"
    assert f"missing  {sentence}" in plan.stdout and refusal.stderr.strip() == f"error: {sentence}" and refusal.returncode == 2
