"""Only what was measured alike is compared; what is compared stands in table, page and pictures with its own numbers."""

import copy
import html
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.unit.report.test_report import HOSTILE, Text, full_results
from torchspec.cli.main import app, main
from torchspec.errors import UserError
from torchspec.evaluate.compare import OF_THE_DRAFT, compare
from torchspec.report.tables import print_results

PROTOCOL = {
    "target": "folder/target",
    "prompts: gsm8k": "128 prompts, sha256 ab12",
    "mode": "offline",
    "temperature": 0,
    "thinking": None,
    "template_hash": "1234",
    "most new tokens": 512,
    "dtype": "bfloat16",
    "tau": "tokens per forward",
    "draft tokens per step": 3,
}


def evaluation() -> dict:
    return copy.deepcopy({**full_results(), "protocol": PROTOCOL})


def better() -> dict:
    """Ahead of `evaluation` on gsm8k and overall, behind on math500, with two slots instead of three."""
    other = evaluation()
    other["draft"], other["protocol"]["draft tokens per step"] = "folder/better", 2
    other["offline"].update(tau=2.0123, tau_interval=[1.944, 2.081], slot_acceptance=[0.45, 0.21])
    other["datasets"]["gsm8k"]["offline"].update(tau=2.4142, tau_interval=[2.3, 2.5])
    other["datasets"]["math500"]["offline"].update(tau=2.2222, tau_interval=[2.1, 2.3])
    other["decode"].update(speedup=1.2263)
    other["served"]["by_concurrency"][0]["speedup"] = 1.4071
    return other


def run(folder: Path, *evaluations: dict, width: int = 200) -> tuple[str, str]:
    """What is printed, and the page."""
    files = []
    for name, results in zip("abcdefghij", evaluations, strict=False):
        files.append(folder / name / "results.json")
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(json.dumps(results))
    printed = io.StringIO()
    page = compare(files, folder / "out", Console(file=printed, width=width))
    assert page == folder / "out" / "compare.html"
    return printed.getvalue(), page.read_text(encoding="utf-8")


def test_folders_stand_for_the_results_in_them(tmp_path, compared):
    printed, _, folder = compared
    again = io.StringIO()
    compare([folder.parent / name for name in "ab"], tmp_path / "out", Console(file=again, width=200))
    assert again.getvalue() == printed
    with pytest.raises(UserError, match="nowhere/results.json is no file; name a results.json that torchspec eval wrote"):
        (tmp_path / "nowhere").mkdir()
        compare([folder.parent / "a", tmp_path / "nowhere"], tmp_path / "out", Console(file=again))


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[str, str, Path]:
    folder = tmp_path_factory.mktemp("compared")
    return *run(folder, evaluation(), better()), folder / "out"


def rows(printed: str) -> list[str]:
    return [" ".join(line.split()) for line in printed.splitlines()]


def test_the_table_has_every_measure_of_every_draft_and_its_difference(compared):
    printed, page, _ = compared
    expected = [
        "τ offline a b",
        "gsm8k 2.13 [2.02, 2.25] 2.41 [2.30, 2.50] +0.28",
        "math500 2.53 [2.42, 2.65] 2.22 [2.10, 2.30] -0.31",
        "mt-$x$ 1.17 1.17 +0.00",
        "all data sets 1.92 [1.85, 1.99] 2.01 [1.94, 2.08] +0.10",
        "τ decoded 1.74 [1.58, 1.90] 1.74 [1.58, 1.90] +0.00",
        "speed-up 1.13× [1.02, 1.19] 1.23× [1.02, 1.19] +0.10",
        "served at 1 1.31× 1.41× +0.10",
        "served at 8 0.91× 0.91× +0.00",
    ]
    assert set(expected) <= set(rows(printed))
    text = " ".join(Text(page).text.split())
    for line in expected:
        assert line in text
    best = re.findall("<strong>(.*?)</strong>", page)
    assert best[:2] == ["2.41 [2.30, 2.50]", "2.53 [2.42, 2.65]"] and best.count("1.17") == 2  # equal ones are both the best


def test_the_charts_hold_the_numbers_of_both_and_lie_beside_the_page_as_png(compared):
    _, page, out = compared
    assert re.findall("<figure><figcaption><h3>(.*?)</h3>", page) == ["τ per data set", "Acceptance per slot", "Speed-up by concurrency"]
    chart = page[page.index("<svg ") : page.index("</svg>")]
    texts = [html.unescape(text).strip() for text in re.findall(r"<text[^>]*>(.*?)</text>", chart, re.DOTALL)]
    numbers = [text for text in texts if re.fullmatch(r"\d\.\d\d", text)]
    assert numbers == ["2.13", "2.53", "1.37", "1.17", "1.92", "2.41", "2.22", "1.37", "1.17", "2.01"] and {"a", "b"} <= set(texts)
    pictures = list((out / "compare_charts").iterdir())
    assert {file.name for file in pictures} == {"tau_per_data_set.png", "slot_acceptance.png", "speedup_by_concurrency.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n") for file in pictures)


def test_the_page_needs_nothing_but_itself_and_shows_names_as_text(compared):
    page = compared[1]
    assert set(re.findall(r"https?://[^\"'<\s]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    tags = Text(page).tags
    assert not {"link", "script", "img", "iframe", "object", "image"} & {tag for tag, _ in tags}
    assert all(value.startswith("#") for _, attributes in tags for name, value in attributes.items() if name in ("src", "href"))


@pytest.mark.parametrize("field", sorted(set(PROTOCOL) - OF_THE_DRAFT))
@pytest.mark.parametrize("absent", [False, True])
def test_each_protocol_field_that_differs_is_refused_and_named_with_both_values(tmp_path, field, absent):
    other = better()
    if absent:
        del other["protocol"][field]
    else:
        other["protocol"][field] = "something else"
    shown = "not set" if PROTOCOL[field] is None else PROTOCOL[field]
    with pytest.raises(UserError) as refusal:
        run(tmp_path, evaluation(), other)
    assert f"alike: {field} is {shown} in a, {'absent' if absent else 'something else'} in b; evaluate again" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_all_fields_that_differ_are_in_one_sentence_and_the_third_file_counts(tmp_path):
    other = better()
    other["protocol"].update(temperature=0.7, dtype="float32")
    other["datasets"].pop("gsm8k")
    with pytest.raises(UserError) as refusal:
        run(tmp_path, evaluation(), better(), other)
    for part in (
        "temperature is 0 in a, 0 in b, 0.7 in c",
        "dtype is bfloat16 in a, bfloat16 in b, float32 in c",
        "data sets is gsm8k, math",
    ):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_draft_may_propose_more_tokens_than_another(tmp_path):
    other = better()
    other["protocol"]["draft tokens per step"] = 15
    _, page = run(tmp_path, evaluation(), other)
    assert 'class="n">15</td>' in page


@pytest.mark.parametrize(("part", "key", "value"), [("hardware", "device", "NVIDIA H200"), ("served", "version", "0.33.0")])
def test_speeds_of_unlike_machines_are_left_out_and_tau_is_not(tmp_path, part, key, value):
    other = better()
    before, other[part][key] = other[part][key], value
    printed, page = run(tmp_path, evaluation(), other)
    sentence = f"{key} is {before} in a, {value} in b"
    assert sentence in printed and sentence in page
    assert not [row for row in rows(printed) if row.startswith(("speed-up", "served"))] and "2.41 [2.30, 2.50] +0.28" in "\n".join(
        rows(printed)
    )
    assert page.count("<svg ") == 2


def test_a_draft_that_was_not_served_has_no_served_numbers(tmp_path):
    other = {**better(), "served": None}
    printed, page = run(tmp_path, evaluation(), other)
    assert "served at 1 1.31× –" in rows(printed) and page.count("<svg ") == 3


def test_decoded_numbers_are_compared_where_nothing_was_walked(tmp_path):
    plain, other = ({**one, "offline": None} for one in (evaluation(), better()))
    printed, page = run(tmp_path, plain, other)
    assert rows(printed)[1] == "τ decoded a b" and "all data sets 1.74 [1.58, 1.90] 1.74 [1.58, 1.90] +0.00" in rows(printed)
    assert "math500 – –" in rows(printed) and page.count("<svg ") == 3


def test_three_drafts_fit_into_a_narrow_terminal(tmp_path):
    printed, _ = run(tmp_path, evaluation(), better(), better(), width=80)
    lines = rows(printed)
    place = lines.index("gsm8k 2.13 [2.02, 2.25] 2.41 [2.30, 2.50] 2.41 [2.30, 2.50]")
    assert lines[place + 1] == "+0.28 +0.28"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is no file; name a results.json"),
        (b"\x89PNG\r\n\x1a\n", "is no JSON .*name a results.json"),
        (b'{"loss": ', "is no JSON .*name a results.json"),
        (b"[1, 2]", "is no results.json, it lacks title"),
        (b'{"title": "x", "draft": "y"}', "is no results.json, it lacks tau_definition, protocol"),
    ],
)
def test_a_file_that_is_no_results_json_is_one_sentence(tmp_path, content, sentence):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(evaluation()))
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(UserError, match=f"bad.json {sentence}"):
        compare([good, bad], tmp_path / "out", Console(file=io.StringIO()))


def test_one_file_or_the_same_file_twice_is_no_comparison(tmp_path):
    file = tmp_path / "good.json"
    file.write_text(json.dumps(evaluation()))
    with pytest.raises(UserError, match="2 to 8 evaluations, got 1"):
        compare([file], tmp_path / "out", Console(file=io.StringIO()))
    with pytest.raises(UserError, match="named twice"):
        compare([file, tmp_path / "." / "good.json"], tmp_path / "out", Console(file=io.StringIO()))


def test_drafts_are_named_by_what_tells_their_files_apart(tmp_path):
    for name in ("_run1/eval", "run2/eval"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(evaluation()))
    result = CliRunner().invoke(app, ["compare", *map(str, sorted(tmp_path.glob("*/eval/results.json"))), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<h1>_run1 · run2</h1>" in page and len(re.findall("<text[^>]*> *_run1</text>", page)) == 3  # in every legend


def test_a_refusal_ends_with_exit_code_2_and_its_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["torchspec", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "a.json is no file; name a results.json" in capsys.readouterr().err


def test_one_evaluation_in_the_terminal():
    printed = io.StringIO()
    results = full_results()
    results["datasets"].pop(HOSTILE)
    print_results(results, Console(file=printed, width=80))
    heading, _, *lines = rows(printed.getvalue())[1:-1]
    assert heading == "data set domain prompts τ offline speed-up slots 1 to 3"
    assert lines == [
        "gsm8k math 7 2.13 [2.02, 2.25] 1.13× 39 18 5%",
        "math500 math 7 2.53 [2.42, 2.65] – 39 18 5%",
        "mt-$x$ chat 7 1.17 1.13× 39 18 5%",
        "all data sets 48 1.92 [1.85, 1.99] 1.13× 39 18 5%",
    ]
