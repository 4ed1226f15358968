"""The commands as a user types them, on small real files; and bad input, which costs one sentence and nothing that was done before."""

import io
import json
import re
import resource
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny import VOCABULARY, recipe, write_chats, write_tiny_target
from torchspec import __version__
from torchspec.cli.main import COMMANDS, app, main


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def torchspec(*arguments) -> Result:
    """The command line in this process, which has imported torch already; `main` is what the installed script calls."""
    stdout, stderr, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv, code = ["torchspec", *map(str, arguments)], 0
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return Result(code, stdout.getvalue(), stderr.getvalue())


def refused(*arguments) -> str:
    """The one sentence of a refused command."""
    result = torchspec(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    sentence = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentence) == 1, result.stderr
    return sentence[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory, target_folder) -> Path:
    """A finished small run: target, data, checkpoints, exported draft."""
    folder = tmp_path_factory.mktemp("cli")
    target = write_tiny_target(folder / "target", target_folder)
    train, held_out = write_chats(folder / "train.jsonl", 24), write_chats(folder / "heldout.jsonl", 4, first=100)
    recipe(folder / "run.yaml", target, train, held_out, max_steps=8, save_interval=4)
    result = torchspec("train", "-c", folder / "run.yaml", "tracking.tensorboard=true", "tracking.profile_steps=[3, 4]")
    assert result.returncode == 0, result.stdout + result.stderr
    result = torchspec("export", "--checkpoint", folder / "run" / "checkpoints", "-o", folder / "draft")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_help_answers_and_loads_no_torch():
    """Of every command, one after another in one process."""
    code = """if True:
        import sys
        from torchspec.cli.main import COMMANDS, app
        for command in ([], *([name] for name in COMMANDS)):
            try:
                app([*command, "--help"])
            except SystemExit as stop:
                assert stop.code == 0
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage") == 1 + len(COMMANDS)


def test_version_and_short_help_answer():
    assert torchspec("--version") == Result(0, f"torchspec {__version__}\n", "")
    for command in ([], ["train"]):
        assert torchspec(*command, "-h").stdout == torchspec(*command, "--help").stdout != ""


def test_a_shell_completes_commands(monkeypatch, capsys):
    for name, value in {"_TORCHSPEC_COMPLETE": "complete_bash", "COMP_WORDS": "torchspec pre", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        app(prog_name="torchspec")
    assert (stop.value.code, capsys.readouterr().out.split()) == (0, ["prepare"])


@pytest.mark.parametrize(
    ("typed", "answer"), [(["trian"], "Did you mean 'train'?"), (["train", "--confg", "x"], "Possible options: --config")]
)
def test_a_misspelt_command_or_option_is_answered_with_the_one_that_was_meant(typed, answer):
    result = torchspec(*typed)
    bare = re.sub(r"[│╭╮╰╯─\s]", "", result.stderr)  # without typer's frame, and where its lines end
    assert result.returncode == 2 and answer.replace(" ", "") in bare


def test_sglangs_other_name_is_understood_and_any_other_word_is_not(tmp_path):
    """No such draft: the option was taken."""
    arguments = ("eval", "-d", tmp_path / "no", "-t", tmp_path / "no", "-o", tmp_path, "--data", "x.jsonl")
    sentences = [refused(*arguments, "--mode", name, "--engine-python", "python") for name in ("sglang", "sgl")]
    assert sentences[0] == sentences[1]
    assert "is not one of" in torchspec(*arguments, "--mode", "sg").stderr


def test_help_takes_hardly_longer_than_typer_itself():
    """In turns with an application of no commands, and by the CPU's seconds: neither the machine nor what else it does decides."""
    empty = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
    ours, bare = [], []
    for _ in range(3):
        ours.append(seconds("-m", "torchspec", "--help"))
        bare.append(seconds("-c", empty, "--help"))
    assert min(ours) < 1.75 * min(bare)  # 1.1 on a quiet machine; with torch it would be 20


def seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_train_writes_metrics_checkpoints_and_a_second_start_does_nothing_more(work):
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6, 8]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [4, 8]
    assert all(row["tau"] >= 1 for row in rows if row["kind"] == "eval")
    again = torchspec("train", "-c", work / "run.yaml")
    assert again.returncode == 0 and "step 8 of 8" in again.stdout
    assert [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize("name", ["earlier", "earlier.pt"])
def test_an_earlier_export_is_replaced_only_when_asked_for(work, name, tmp_path):
    command, out = ("export", "--checkpoint", work / "run" / "checkpoints", "-o", tmp_path / name), tmp_path / name
    assert torchspec(*command).returncode == 0
    file = out if out.is_file() else out / "model.safetensors"
    before, made = file.read_bytes(), file.stat().st_ino
    assert f"{out} exists already; add --force to replace it" in refused(*command) and file.stat().st_ino == made
    assert torchspec(*command, "--force").returncode == 0
    assert file.read_bytes() == before and file.stat().st_ino != made


def test_tensorboard_shows_the_numbers_of_the_metrics(work):
    events = EventAccumulator(str(work / "run" / "tensorboard"))
    events.Reload()
    for kind, name in (("train", "loss"), ("eval", "tau")):
        rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
        shown = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if row["kind"] == kind]  # stored as float32


def test_the_profile_holds_the_steps_that_were_asked_for(work):
    """Two steps of two optimizers."""
    trace = json.loads((work / "run" / "profile" / "steps-3-4.json").read_text())
    assert sum(event.get("name", "").startswith("Optimizer.step#") for event in trace["traceEvents"]) == 4
    assert "ends behind the run's last step, 8" in refused("train", "-c", work / "run.yaml", "tracking.profile_steps=[8, 9]")


def test_held_out_prompts_in_the_training_text_are_told_when_it_is_prepared_and_when_it_is_trained_on(work, tmp_path):
    leak = json.loads((work / "run" / "checkpoints" / "iter_0000008" / "data.json").read_text())["leak"]
    assert (leak["samples"], leak["prompts"], leak["duplicates"], leak["overlapping"]) == (24, 4, 0, 0)
    (tmp_path / "leaky.jsonl").write_text(
        "".join((work / name).read_text().splitlines(True)[2] for name in ("train.jsonl", "heldout.jsonl"))
    )
    arguments = ("prepare", work / "train.jsonl", "-o", tmp_path / "out", "-t", work / "target", "--held-out", tmp_path / "leaky.jsonl")
    result = torchspec(*arguments)
    assert result.returncode == 0 and "1 of 2 held-out prompts stand in the training data, 1 word for word" in result.stdout
    assert f"{tmp_path / 'leaky.jsonl'}:1 is in {work / 'train.jsonl'}:3" in result.stdout


def test_plan_prints_the_run_and_trains_nothing(work):
    result = torchspec("train", "-c", work / "run.yaml", "--plan", f"output_dir={work / 'planned'}", "training.num_epochs=3")
    assert result.returncode == 0, result.stderr
    assert "8 of 1 x 1 micro-batches, 3 epochs" in result.stdout and "GiB per checkpoint" in result.stdout
    assert not (work / "planned" / "checkpoints").exists() and not (work / "planned" / "metrics.jsonl").exists()


def evaluate(work: Path, out: str, *options: str) -> dict:
    """results.json of three decoded prompts."""
    arguments = ("-d", work / "draft", "-t", work / "target", "--dtype", "float32", "--max-new-tokens", "24", "--decode", "3")
    result = torchspec("eval", *arguments, "--data", work / "heldout.jsonl", "-o", work / out, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((work / out / "results.json").read_text())


@pytest.fixture(scope="module")
def evaluated(work) -> dict:
    return evaluate(work, "eval")


def test_eval_proves_the_decode_lossless_and_agrees_with_the_trainer(work, evaluated):
    assert evaluated["decode"]["identical"] == 3 and evaluated["decode"]["mismatches"] == 0
    best = json.loads((work / "run" / "checkpoints" / "best.json").read_text())
    assert evaluated["offline"]["tau"] == best["tau"]  # the same weights, prompts and arithmetic
    assert (work / "eval" / "report.html").stat().st_size > 0


def test_text_that_trained_the_draft_is_not_called_held_out(work, evaluated):
    arguments = ("-d", work / "draft", "-t", work / "target", "--dtype", "float32", "--decode", "0", "--limit", "1")
    result = torchspec("eval", *arguments, "--data", work / "train.jsonl", "-o", work / "learned")
    assert "WARNING: this draft was trained on train: what is measured there says nothing about new text" in result.stdout
    assert json.loads((work / "learned" / "results.json").read_text())["trained_on"] == ["train"] and evaluated["trained_on"] == []


def test_fewer_draft_tokens_are_proposed_and_reported(work):
    arguments = ("-d", work / "draft", "-t", work / "target", "--dtype", "float32", "--max-new-tokens", "16")
    asked = ("--data", work / "heldout.jsonl", "-o", work / "fewer", "--decode", "2", "--limit", "2", "--draft-tokens", "2")
    assert (result := torchspec("eval", *arguments, *asked)).returncode == 0, result.stdout + result.stderr
    results = json.loads((work / "fewer" / "results.json").read_text())
    assert results["protocol"]["draft tokens per step"] == 2 == len(results["offline"]["slot_acceptance"])
    assert results["decode"]["identical"] == 2
    assert "at most 3 tokens" in refused("generate", "Hello", *arguments, "--draft-tokens", "4")


def test_eval_on_a_data_set_decodes_what_it_predicts_and_goes_on_after_a_kill(work):
    """In float32 the offline walk over the target's answers is the decode of their questions, count by count."""
    (work / "sets").mkdir()
    rows = [json.dumps({"question": f"What is {i} plus {i}?", "answer": "#### 0"}) + "\n" for i in range(4)]
    (work / "sets" / "gsm8k.jsonl").write_text("".join(rows))
    asked = ("--datasets", "gsm8k", "--data-dir", work / "sets", "--limit", "3", "--cache", work / "cache", "-o", work / "sets-eval")
    arguments = ("-d", work / "draft", "-t", work / "target", "--dtype", "float32", "--mode", "decode", "--max-new-tokens", "16", *asked)
    assert (first := torchspec("eval", *arguments)).returncode == 0, first.stdout + first.stderr
    results = json.loads((work / "sets-eval" / "results.json").read_text())
    counts = ("tau", "steps", "tokens", "histogram", "slot_acceptance", "prompts", "tau_interval")
    offline, decode = (results["datasets"]["gsm8k"][mode] for mode in ("offline", "decode"))
    assert [offline[key] for key in counts] == [decode[key] for key in counts] and offline["prompts"] == 3
    assert decode["identical"] == 3 and results["datasets"]["gsm8k"]["domain"] == "math"
    assert decode["offline_tau"] == offline["tau"]  # the same prompts
    assert sum(row["steps"] for row in results["datasets"]["gsm8k"]["by_context"]) == offline["steps"]
    assert [row["concurrency"] for row in results["break_even"]] == [1, 8, 32]
    for row in results["break_even"]:
        tau = 1 + sum(offline["slot_acceptance"][: row["best_draft_tokens"]])
        assert row["tau_at_best"] == pytest.approx(tau) and row["speedup_at_best"] == pytest.approx(tau / row["tau_needed"])
        assert row["speedup_at_best"] == max(row["curve"]) and len(row["curve"]) == len(offline["slot_acceptance"])
    measured, (answers,) = work / "sets-eval" / "measured.jsonl", (work / "cache" / "answers").glob("*.jsonl")
    whole, written = measured.read_text(), answers.stat().st_mtime_ns
    lines = whole.splitlines(keepends=True)
    measured.write_text("".join(lines[:5]) + lines[5][:20])  # killed in the second decode
    assert torchspec("eval", *arguments).returncode == 0
    assert measured.read_text().startswith("".join(lines[:5])) and len(measured.read_text().splitlines()) == len(lines)
    again = json.loads((work / "sets-eval" / "results.json").read_text())
    assert again["offline"] == results["offline"] and [again["decode"][key] for key in counts] == [results["decode"][key] for key in counts]
    assert answers.stat().st_mtime_ns == written  # the target was not asked again


def test_eval_of_prompts_decoded_together_counts_what_it_counts_alone(work, evaluated):
    """In float32 the same answers in the same steps; the protocol says how many were decoded together."""
    together, counts = (
        evaluate(work, "together", "--batch-size", "2"),
        ("tau", "steps", "tokens", "histogram", "slot_acceptance", "prompts"),
    )
    assert [results["protocol"]["prompts decoded together"] for results in (evaluated, together)] == [1, 2]
    assert together["decode"]["identical"] == 3 and together["decode"]["speedup"] > 0
    assert [together["decode"][key] for key in counts] == [evaluated["decode"][key] for key in counts]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --data"),
        (("--datasets", "gsm9k"), "'gsm9k' is not known; choose among gsm8k"),
        (("--datasets", "mbpp", "--data-dir", "nowhere"), "--data-dir holds no mbpp.jsonl"),
    ],
)
def test_an_evaluation_that_cannot_begin_says_so(work, arguments, words):
    assert words in refused("eval", "-d", work / "draft", "-t", work / "target", "-o", work / "none", *arguments)


@pytest.mark.parametrize("sampling", [(), ("--temperature", "0.8", "--seed", "1")])
def test_generate_prints_an_answer_and_its_tau(work, sampling):
    arguments = ("-d", work / "draft", "-t", work / "target", "--max-new-tokens", "8", "--dtype", "float32")
    result = torchspec("generate", "Count to five.", *arguments, *sampling)
    assert result.returncode == 0, result.stderr
    assert "tok/s" in result.stdout and "τ" in result.stdout


def test_regenerate_goes_on_after_a_cut_without_redoing_or_repeating(work):
    out = work / "answers.jsonl"
    arguments = ("regenerate", work / "heldout.jsonl", "-t", work / "target", "-o", out, "--max-new-tokens", "6", "--dtype", "float32")
    assert torchspec(*arguments, "--limit", "2").returncode == 0
    first = out.read_text()
    out.write_text(first + '{"id": "cut in the mid')
    result = torchspec(*arguments)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text().startswith(first) and len(rows) == 4 == len({row["id"] for row in rows})
    assert "2 answers written (2 conversations were there)" in " ".join(result.stdout.split())
    share = torchspec("regenerate", out, "-t", work / "target", "--measure", "--dtype", "float32")
    assert "on-policy share 100.0%" in " ".join(share.stdout.split()), share.stdout + share.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b'{"messages": [}\n', "JSON"),
        (b'{"messages": [{"role": "wizard", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n', "role"),
        (b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}\n', "empty"),
        (b'{"messages": [{"role": "user", "content": "h\xff\xfe"}]}\n', "UTF-8"),
    ],
)
def test_bad_rows_are_named_and_an_earlier_dataset_survives(work, tmp_path, content, reason):
    out = tmp_path / "prepared"
    assert torchspec("prepare", work / "heldout.jsonl", "-o", out, "-t", work / "target").returncode == 0
    before = (out / "manifest.json").read_bytes()
    (tmp_path / "bad.jsonl").write_bytes(content)
    sentence = refused("prepare", tmp_path / "bad.jsonl", "-o", out, "-t", work / "target")
    assert reason in sentence and "bad.jsonl" in sentence
    assert (out / "manifest.json").read_bytes() == before


def test_a_few_bad_rows_are_counted_and_listed(work, tmp_path):
    good = write_chats(tmp_path / "mixed.jsonl", 30).read_text()
    (tmp_path / "mixed.jsonl").write_text(good + "not json\n")
    result = torchspec("prepare", tmp_path / "mixed.jsonl", "-o", tmp_path / "out", "-t", work / "target", "--show", "1")
    assert result.returncode == 0, result.stderr
    assert "rejected 1" in result.stdout and "30 samples" in result.stdout
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"] for row in listed] == [f"{tmp_path / 'mixed.jsonl'}:31"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("draft.target_layer_ids=[1,5]", "target_layer_ids=[1, 5]"),
        ("draft.target_layer_ids=[3,1]", "ascend"),
        (f"draft.mask_token_id={VOCABULARY}", "outside the target's vocabulary"),
        ("draft.mask_token_id=1", "occurs"),
        ("draft.blok_size=4", "blok_size"),
        ("training.learning_rate=fast", "training.learning_rate"),
        ("training.min_lr=1.0", "min_lr"),
        ("inference.inference_engine_type=abacus", "inference_engine_type"),
        ("dataset.train_data_path=nowhere.jsonl", "nowhere.jsonl"),
        ("model.target_model_path=./nowhere", "nowhere"),
        ("model.device=cuda:7", "cuda:7"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_field(work, override, words):
    sentence = refused("train", "-c", work / "run.yaml", f"output_dir={work / 'refused'}", override)
    assert words in sentence


def test_a_changed_run_does_not_resume_and_its_checkpoints_stay(work):
    before = sorted((work / "run" / "checkpoints").iterdir())
    sentence = refused("train", "-c", work / "run.yaml", "training.learning_rate=0.002")
    assert "training.learning_rate: 0.003 -> 0.002" in sentence
    assert sorted((work / "run" / "checkpoints").iterdir()) == before


def test_empty_weights_and_a_missing_template_are_refused(work, tmp_path, target_folder):
    broken = write_tiny_target(tmp_path / "broken", target_folder)
    (broken / "model.safetensors").write_bytes(b"")
    sentence = refused("train", "-c", work / "run.yaml", f"model.target_model_path={broken}", f"output_dir={tmp_path / 'o'}")
    assert "model.safetensors" in sentence and "0 bytes" in sentence
    untold = write_tiny_target(tmp_path / "untold", target_folder)
    (untold / "chat_template.jinja").unlink()
    sentence = refused("prepare", work / "heldout.jsonl", "-o", tmp_path / "p", "-t", untold)
    assert "chat template" in sentence


@pytest.mark.parametrize("given", ["run", "run/checkpoints", "run/checkpoints/iter_0000008"])
def test_a_checkpoint_in_the_place_of_a_draft_is_answered_with_its_export(work, given):
    sentence = refused("generate", "Hello", "-d", work / given, "-t", work / "target")
    command = re.search("`torchspec (export --checkpoint (.+) -o) DRAFT`", sentence)
    assert torchspec(*command[1].split(), work / "exported" / given).returncode == 0


def test_conversations_and_questions_come_from_stdin_as_well(work, tmp_path, monkeypatch):
    rows = (work / "heldout.jsonl").read_bytes()
    for command in (("prepare", "-", "-o", tmp_path / "clean.jsonl"), ("prepare", "-", "-o", tmp_path / "ids", "-t", work / "target")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows)))
        assert torchspec(*command).returncode == 0
    clean = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert [row["messages"] for row in clean] == [json.loads(line)["messages"] for line in rows.splitlines()]
    assert json.loads((tmp_path / "ids" / "manifest.json").read_text())["samples"] == len(clean)
    arguments = ("-d", work / "draft", "-t", work / "target", "--max-new-tokens", "8", "--dtype", "float32")
    monkeypatch.setattr("sys.stdin", io.StringIO("Count to five."))
    piped, given = (torchspec("generate", asked, *arguments).stdout.split("tokens")[0] for asked in ("-", "Count to five."))
    assert piped == given != ""
    assert "is read from a pipe" in refused("regenerate", "-", "-t", work / "target", "--measure", "--dtype", "float32")


def test_a_share_of_the_prompts_is_held_out_and_eval_takes_it(work, tmp_path):
    split = ("dataset.eval_data_path=null", "dataset.eval_share=0.2", f"output_dir={tmp_path / 'run'}", "training.max_steps=4")
    result = torchspec("train", "-c", work / "run.yaml", *split)
    assert result.returncode == 0, result.stderr
    folder = re.search("`torchspec eval --data (.+)`", result.stdout)[1]
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert torchspec("export", "--checkpoint", tmp_path / "run" / "checkpoints", "-o", tmp_path / "draft").returncode == 0
    arguments = ("-d", tmp_path / "draft", "-t", work / "target", "--dtype", "float32", "--decode", "0", "--limit", "4")
    evaluated = torchspec("eval", *arguments, "--data", folder, "-o", tmp_path / "eval")
    assert evaluated.returncode == 0 and "was trained on" not in evaluated.stdout
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["offline"]["tau"] == best["tau"]
    both = refused("train", "-c", work / "run.yaml", "dataset.eval_share=0.2")
    assert "dataset" in both and "eval_share=0.2 and eval_data_path=" in both


def test_a_draft_for_another_target_is_refused(work, target_folder):
    sentence = refused("eval", "-d", work / "draft", "-t", target_folder, "--data", work / "heldout.jsonl", "-o", work / "no")
    assert "made for a target with" in sentence
