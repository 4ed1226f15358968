"""The page holds every number it was given, shows text as text, and needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torchspec.errors import UserError
from torchspec.evaluate.report import write_report

TEMPLATE = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
HOSTILE = "Is <script>alert('x')</script> & \"this\" safe?"
ANSWER = [["Yes", "target"], [":\n\n", "draft"], ["", "draft"], ["  a <b>", "draft"], [" & 月\n", "target"], ["</div>", "draft"]]


class Text(HTMLParser):
    """What a reader sees outside the charts: all text, the answer's coloured tokens; and every tag with its attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.text, self.tokens, self.tags = [], "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag != "meta":
            self.open.append(attributes.get("class") if tag in ("span", "div") else tag)
        if self.open[-2:] in (["text answer", "draft"], ["text answer", "target"]):
            self.tokens.append(["", attributes["class"]])

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self.open.pop()
        self.text += " " if tag in ("td", "th", "h3", "b", "p") else ""

    def handle_data(self, data):
        if "style" not in self.open and "svg" not in self.open:
            self.text += data
        if "text answer" in self.open:
            self.tokens[-1][0] += data


def example(question: str, rate: float, outcome: str) -> dict:
    rates = {"plain_tokens_per_second": rate, "speculative_tokens_per_second": rate + 100}
    return {"prompt": TEMPLATE.format(question), "pieces": ANSWER, "tau": rate / 10, "outcome": outcome, **rates}


EXAMPLES = [example(HOSTILE, 21.3, "identical"), example("Why?", 22.4, "tie"), example("How?", 23.5, "identical")]


def results() -> dict:
    """B = 4."""
    offline = {"tau": 1.917, "steps": 1013, "tokens": 1942, "histogram": [617, 211, 132, 53], "slot_acceptance": [0.39, 0.18, 0.05]}
    decode = {"tau": 1.7385, "steps": 409, "tokens": 711, "histogram": [251, 79, 61, 18], "slot_acceptance": [0.377, 0.193, 0.044]}
    speed = {"speedup": 1.1263, "plain_tokens_per_second": 30.17, "speculative_tokens_per_second": 34.04, "break_even_tau": 1.5437}
    return {
        "title": "Tiny <i>target</i> + DFlash",
        "target": "folder/target",
        "draft": "folder/draft",
        "tau_definition": "tokens per forward, bonus included",
        "on_policy_share": 0.9853,
        "protocol": {"data": "heldout.jsonl", "temperature": 0, "thinking": None, "dtype": "bfloat16"},
        "offline": {**offline, "prompts": 48},
        "decode": {**decode, **speed, "identical": 2, "ties": 1, "mismatches": 0, "examples": EXAMPLES},
        "config": {"training": {"learning_rate": 0.00123, "name": "<config>"}},
        "versions": {"torch": "2.11.0"},
        "hardware": {"device": "x86_64 CPU", "threads": 2},
        "seed": 1234,
        "command": "torchspec eval --data 'a b.jsonl'",
    }


def metrics() -> list[dict]:
    steady = {"kind": "train", "tokens_per_second": 700.0, "slot_accuracy": [0.5, 0.3, 0.1]}
    train = [{**steady, "step": step, "loss": 5 - step / 100, "block_tau": 1 + step / 200} for step in range(10, 210, 10)]
    return [*train, {"kind": "eval", "step": 100, "tau": 1.61}, {"kind": "eval", "step": 200, "tau": 1.5732}]


def write(folder: Path, results: dict, rows: list[dict] | None) -> str:
    (folder / "results.json").write_text(json.dumps(results))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(folder)
    assert page == folder / "report.html" and not list(folder.glob("*.partial"))
    return page.read_text(encoding="utf-8")


def test_every_number_of_the_results_is_on_the_page(tmp_path):
    text = " ".join(Text(write(tmp_path, results(), metrics())).text.split())
    cards = """
        τ offline, held-out 1.92 1942 tokens in 1013 target forwards, 48 conversations.
        τ decoded 1.74 711 tokens in 409 target forwards, 3 answers.
        Speed-up 1.13× Over plain decoding on this machine: 30.2 → 34.0 tokens/s
        This machine needs τ > 1.54 to win.
        Lossless check 2 of 3 2 identical to plain greedy decoding, 1 parts at a tie of two logits (rounding decides), 0 mismatches.
        On-policy share 98.5%"""
    acceptance = "1 39.0% 37.7% 617 251 2 18.0% 19.3% 211 79 3 5.0% 4.4% 132 61 4 – – 53 18"  # n, slots, steps
    answers = ["2.13 21.3 121.3 identical", "Why?<|im_end|> 2.24 22.4 122.4 tie", "How?<|im_end|> 2.35 23.5 123.5 identical"]
    facts = ["target folder/target draft folder/draft data heldout.jsonl temperature 0 thinking not set dtype bfloat16"]
    run = ["torch 2.11.0", "device x86_64 CPU threads 2", "torchspec eval --data 'a b.jsonl'", "seed 1234"]
    config = '"learning_rate": 0.00123'
    for expected in [results()["tau_definition"], config, acceptance, *answers, *facts, *run]:
        assert expected in text
    for card in cards.strip().splitlines():
        assert card.strip() in text


def test_charts_are_drawn_for_the_data_there_is(tmp_path):
    page = write(tmp_path, results(), metrics())
    for title in ("Training loss", "Acceptance length τ", "Training accuracy per slot", "Tokens per second", "Acceptance per slot"):
        assert f"<h3>{title}</h3>" in page
    assert page.count("<svg ") == 6 and ">best 1.61</text>" in page and "axis cut" not in page


def test_a_first_loss_that_would_flatten_the_curve_is_cut_and_named(tmp_path):
    rows = metrics()
    rows[0]["loss"] = 54.6
    assert "axis cut: highest value 54.6" in write(tmp_path, results(), rows)


def test_text_of_models_and_users_stays_text(tmp_path):
    page = write(tmp_path, results(), metrics())
    parsed = Text(page)
    assert not {"script", "i"} & {tag for tag, _ in parsed.tags} and "a <b>" not in page
    assert TEMPLATE.format(HOSTILE) in parsed.text and "Tiny <i>target</i> + DFlash" in parsed.text and '"<config>"' in parsed.text


def test_coloured_tokens_join_to_the_answer(tmp_path):
    assert Text(write(tmp_path, results(), metrics())).tokens == ANSWER


def test_the_table_shows_what_tells_prompts_apart(tmp_path):
    cells = re.findall(r"<tr><td>(.*?)</td>", write(tmp_path, results(), None))
    assert cells[1:] == ["Why?&lt;|im_end|&gt;", "How?&lt;|im_end|&gt;"]


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = write(tmp_path, results(), metrics())
    assert set(re.findall(r"https?://[^\"'<\s]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    tags = Text(page).tags
    assert not {"link", "script", "img", "iframe", "object", "image"} & {tag for tag, _ in tags}
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")]
    urls = re.findall(r"url\((.*?)\)", page)
    assert links and all(link.startswith("#") for link in links + urls) and "@import" not in page
    identifiers = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert {link[1:] for link in links + urls} <= identifiers


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    assert write(tmp_path, results(), metrics()) == write(tmp_path, results(), metrics())


@pytest.mark.parametrize("missing", [("offline",), ("decode",), ("offline", "decode")])
def test_a_page_without_metrics_or_a_section_says_so(tmp_path, missing):
    page = write(tmp_path, {**results(), **dict.fromkeys(missing), "on_policy_share": None, "seed": None, "config": {}}, None)
    assert "no training curves" in page and "On-policy" not in page
    assert ("No offline evaluation was run" in page) == ("offline" in missing)
    assert ("Nothing was decoded" in page) == ("decode" in missing) == ("token by token" not in page)
    assert page.count("<svg ") == (2 if len(missing) < 2 else 0)


@pytest.mark.parametrize(("mismatches", "red"), [(0, False), (1, True)])
def test_mismatches_are_red(tmp_path, mismatches, red):
    changed = results()
    changed["decode"]["mismatches"] = mismatches
    classes = [attributes.get("class") for _, attributes in Text(write(tmp_path, changed, None)).tags]
    assert ("card bad" in classes) == red


def test_a_draft_that_accepts_nothing_and_one_row_of_metrics_still_draw(tmp_path):
    empty = {"tau": 1.0, "steps": 0, "tokens": 0, "histogram": [0] * 4, "slot_acceptance": [0.0] * 3, "prompts": 1}
    assert write(tmp_path, {**results(), "offline": empty, "decode": None}, metrics()[:1]).count("<svg ") == 6


def test_a_last_line_cut_by_a_kill_does_not_count(tmp_path):
    whole = write(tmp_path, results(), metrics())
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"kind": "train", "st')
    assert write(tmp_path, results(), None) == whole


def test_no_results_is_one_sentence_and_leaves_the_old_page(tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(UserError, match="no results.json.*torchspec eval"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
