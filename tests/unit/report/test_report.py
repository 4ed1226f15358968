"""The page holds every number it was given, shows text as text, and needs nothing but itself."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from torchspec.errors import UserError
from torchspec.report.diverging import diverging
from torchspec.report.in_time import picture_of
from torchspec.report.training_charts import training_charts
from torchspec.report.verdict import lossless, speed, verdict
from torchspec.report.write import write_report

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


OFFLINE = {"tau": 1.917, "steps": 1013, "tokens": 1942, "histogram": [617, 211, 132, 53], "slot_acceptance": [0.39, 0.18, 0.05]}
DECODE = {"tau": 1.7385, "steps": 409, "tokens": 711, "histogram": [251, 79, 61, 18], "slot_acceptance": [0.377, 0.193, 0.044]}
SPEED = {"speedup": 1.1263, "plain_tokens_per_second": 30.17, "speculative_tokens_per_second": 34.04}
WALKED = {"offline_tau": 1.7612, "offline_tau_interval": [1.612, 1.914]}  # the decoded prompts
OUTCOMES = {"identical": 2, "ties": 1, "mismatches": 0}


PICTURE = {
    "prompt": TEMPLATE.format(HOSTILE),
    "outcome": "identical",
    "whole": True,
    "plain": {"pieces": [[text, "plain"] for text, _ in ANSWER], "seconds": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]},
    "draft": {"pieces": ANSWER, "seconds": [0.0, 2.5, 2.5, 2.5, 2.5, 3.25]},
}


def results() -> dict:
    """B = 4, one data set that has no domain, nothing served."""
    offline = {**OFFLINE, "tau_interval": [1.847, 1.994], "prompts": 48}
    decode = {**DECODE, "tau_interval": [1.581, 1.903], "prompts": 3, **SPEED, "speedup_interval": [1.023, 1.188], **OUTCOMES, **WALKED}
    return {
        "title": "Tiny <i>target</i> + DFlash",
        "target": "folder/target",
        "draft": "folder/draft",
        "tau_definition": "tokens per forward, bonus included",
        "trained_on": [],
        "on_policy_share": 0.9853,
        "protocol": {"target": "folder/target", "temperature": 0, "thinking": None, "draft tokens per step": 3, "dtype": "bfloat16"},
        "offline": offline,
        "decode": {**decode, "examples": EXAMPLES, "picture": PICTURE},
        "datasets": {"heldout": {"domain": None, "offline": offline, "decode": decode, "by_context": []}},
        "served": None,
        "break_even": None,
        "config": {"training": {"learning_rate": 0.00123, "name": "<config>"}},
        "versions": {"torchspec": "0.1.0", "torch": "2.11.0"},
        "hardware": {"device": "x86_64 CPU", "threads": 2},
        "seed": 1234,
        "command": "torchspec eval --data 'a b.jsonl'",
        "date": "2026-11-29 12:20 UTC",
        "commit": "3be6fbfcdb",
        "serve": {"vLLM": 'vllm serve TARGET --speculative-config \'{"method": "dflash"}\''},
    }


def counts(tau: float, steps: int) -> dict:
    """Of one data set: tau alone matters."""
    interval = [tau - 0.11, tau + 0.12]
    return {**OFFLINE, "tau": tau, "tau_interval": interval, "steps": steps, "tokens": round(tau * steps), "prompts": 7}


def contexts(*taus: float) -> list[dict]:
    spans = ((0, 128), (128, 1024), (1024, 2048))
    return [{"from": start, "to": end, "tau": tau, "steps": 10} for (start, end), tau in zip(spans, taus, strict=False)]


def full_results() -> dict:
    """Four data sets in two domains, one of them not decoded; served and predicted at two concurrencies."""
    decode = {**counts(1.61, 100), **SPEED, "speedup_interval": None, **OUTCOMES, **WALKED}
    datasets = {
        "gsm8k": {"domain": "math", "offline": counts(2.13, 100), "decode": decode, "by_context": contexts(2.2, 2.0)},
        "math500": {"domain": "math", "offline": counts(2.53, 300), "decode": None, "by_context": contexts(2.4, 2.6, 1.5)},
        HOSTILE: {"domain": "code", "offline": counts(1.37, 200), "decode": decode, "by_context": []},
        "mt-$x$": {"domain": "chat", "offline": {**counts(1.17, 50), "tau_interval": None}, "decode": decode, "by_context": []},
    }
    rows = [
        {
            "concurrency": concurrency,
            "plain": {"tokens_per_second": 30.4 * concurrency, "ttft_ms": 41.3, "tpot_ms": 31.57},
            "draft": {"tokens_per_second": 39.7 * concurrency, "ttft_ms": 47.6, "tpot_ms": 23.46},
            "speedup": speedup,
            "tau": 1.894,
            "slot_acceptance": [0.36, 0.17, 0.04],
            "steps": 800,
        }
        for concurrency, speedup in ((1, 1.3059), (8, 0.9142))
    ]
    curves = ([1.2061, 1.3172, 1.2584], [1.0513, 0.9935, 0.8722])
    best = {
        "best_draft_tokens": 2, "best_draft_tokens_interval": [1, 3], "tau_at_best": 1.88, "rounds": 12, "tau_needed": 1.4271,
        "tau_needed_interval": [1.38, 1.48], "speedup_at_best": 1.3172, "speedup_interval": [1.27, 1.36],
    }  # fmt: skip
    verdicts = ({"verdict": "pays"}, {"verdict": "noise exceeds the effect", "speedup_at_best": 1.0513, "speedup_interval": [0.93, 1.2]})
    break_even = [
        {"concurrency": n, **best, **said, "curve": curve, "curve_intervals": [[one - 0.05, one + 0.05] for one in curve]}
        for n, said, curve in zip((1, 8), verdicts, curves, strict=True)
    ]
    outcomes = {"identical": 23, "ties": 1, "mismatches": 0, "of": 24}
    own = {"own_tau": 1.887, "gap": 0.0037, "alarm": None}
    served = {"engine": "vllm", "version": "0.32.0", "by_concurrency": rows, **outcomes, **own}
    return {**results(), "datasets": datasets, "served": served, "break_even": break_even}


def metrics() -> list[dict]:
    steady = {"kind": "train", "tokens_per_second": 700.0, "slot_accuracy": [0.5, 0.3, 0.1]}
    train = [{**steady, "step": step, "loss": 5 - step / 100, "block_tau": 1 + step / 200} for step in range(10, 210, 10)]
    first = {"kind": "eval", "step": 100, "tau": 1.61, "block_tau": 1.66, "training_block_tau": 1.88, "since_best": 0}
    return [*train, first, {**first, "step": 200, "tau": 1.5732, "training_block_tau": 1.98, "since_best": 1}]


def write(folder: Path, results: dict, rows: list[dict] | None) -> str:
    (folder / "results.json").write_text(json.dumps(results))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(folder)
    assert page == folder / "report.html" and not list(folder.glob("*.partial"))
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(folder, results(), metrics())
    return folder


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory) -> Path:
    """With every chart there is."""
    folder = tmp_path_factory.mktemp("full")
    write(folder, full_results(), metrics())
    return folder


@pytest.fixture(scope="module")
def full_page(full_folder) -> str:
    return (full_folder / "report.html").read_text(encoding="utf-8")


def test_every_number_of_the_results_is_on_the_page(page):
    text = " ".join(Text(page).text.split())
    cards = """
        τ offline, held-out 1.92 1,942 tokens in 1,013 target forwards, 48 conversations. 95% interval over prompts: 1.85 to 1.99.
        τ decoded 1.74 711 tokens in 409 target forwards, 3 answers. 95% interval: 1.58 to 1.90. The same prompts walked offline: 1.76.
        Speed-up 1.13× ✓ passed Each answer against its own plain decoding, a moment before; the median of 3. 95% interval: 1.02 to 1.19.
        Plain decoding writes 30.2 tokens/s.
        2 identical to plain greedy decoding, 1 parts at a tie of two logits (rounding decides), 0 mismatches.
        On-policy share 98.5%"""
    acceptance = "1 39.0% 37.7% 617 251 2 18.0% 19.3% 211 79 3 5.0% 4.4% 132 61 4 – – 53 18"  # n, slots, steps
    answers = [" identical 2.13 21.3 121.3 5.69×", "Why?<|im_end|> tie 2.24 22.4 122.4 5.46×", "How?<|im_end|> identical 2.35 23.5 123.5"]
    datasets = (
        "data set prompts τ offline decoded τ offline, of these τ decoded speed-up heldout 48 1.92 [1.85, 1.99] 3 1.76 [1.61, 1.91] "
        "1.74 [1.58, 1.90] 1.13× [1.02, 1.19]"
    )
    facts = ["draft folder/draft target folder/target temperature 0 thinking not set draft tokens per step 3 dtype bfloat16"]
    run = ["torch 2.11.0", "device x86_64 CPU threads 2", "torchspec eval --data 'a b.jsonl'", "seed 1234"]
    config = '"learning_rate": 0.00123'
    carried = (
        "At step 100, the best, the draft gets 1.66 tokens per forward after every token of held-out text and 1.88 on training text: "
        "75% of the gain carries over. Evaluations since then, none of them better: 1."
    )
    for expected in [results()["tau_definition"], carried, config, acceptance, datasets, *answers, *facts, *run]:
        assert expected in text
    for card in cards.strip().splitlines():
        assert card.strip() in text


def test_charts_are_drawn_for_the_data_there_is(page):
    for title in (*CURVES, "Acceptance per slot"):
        assert f"<h3>{title}</h3>" in page
    assert page.count("<figure>") == 7 and ">best 1.61</text>" in page and "axis cut" not in page


CURVES = ("Training loss", "Acceptance length τ", "Training accuracy per slot", "Tokens per second")
TITLES = (
    "τ per data set", "τ by domain", "Acceptance per slot", "Tokens committed per target forward", "τ by context length",
    "τ offline and decoded", "Speed-up by concurrency", "Predicted speed-up by number of draft tokens",
)  # fmt: skip


def test_several_data_sets_served_and_predicted_have_charts_of_their_own(full_folder, full_page):
    drawn = re.findall("<figure><figcaption><h3>(.*?)</h3>", full_page)
    assert drawn == [*TITLES, *CURVES] and full_page.count("<figure>") == len(drawn) == len(list((full_folder / "charts").glob("*.png")))


def drawn(page: str, title: str) -> list[str]:
    """All text in the chart of that title."""
    chart = page[page.index(f"<figcaption><h3>{title}</h3>") :]
    return [html.unescape(text).strip() for text in re.findall(r"<text[^>]*>(.*?)</text>", chart[: chart.index("</svg>")], re.DOTALL)]


def test_the_numbers_in_the_charts_are_those_of_the_file(full_page):
    """tau of a domain, by hand: tokens over steps of its data sets."""
    bars = drawn(full_page, "τ per data set")
    assert {"gsm8k", "math500", "mt-$x$", "all data sets", "offline", "plain decoding"} <= set(bars)
    assert [text for text in bars if re.fullmatch(r"\d\.\d\d", text)] == ["2.13", "2.53", "1.37", "1.17", "1.92"]
    math = (213 + 759) / 400
    assert [text for text in drawn(full_page, "τ by domain") if re.fullmatch(r"\d\.\d\d", text)][:3] == [f"{math:.2f}", "1.37", "1.16"]
    assert {"128", "1k", "2k"} <= set(drawn(full_page, "τ by context length"))
    assert "vllm" in drawn(full_page, "Acceptance per slot") and "vllm with the draft" in drawn(full_page, "Speed-up by concurrency")


def test_the_tables_hold_every_number_behind_the_charts(full_page):
    text = " ".join(Text(full_page).text.split())
    datasets = "gsm8k math 7 2.13 [2.02, 2.25] 7 1.76 [1.61, 1.91] 1.61 [1.50, 1.73] 1.13× math500 math 7 2.53 [2.42, 2.65] – – – –"
    # one prompt has no interval
    alone = "mt-$x$ chat 7 1.17 7 1.76 [1.61, 1.91] 1.61 [1.50, 1.73] 1.13× all data sets 48 1.92 [1.85, 1.99]"
    pooled = "gsm8k 2.20 2.00 – math500 2.40 2.60 1.50 all data sets 2.30 2.30 1.50"  # equal steps: the mean
    served = "1 1.89 30.4 39.7 1.31× 41.3 ms 47.6 ms 31.57 ms 23.46 ms 8 1.89 243.2 317.6 0.91× 41.3 ms 47.6 ms 31.57 ms 23.46 ms"
    predicted = "1 1.21× [1.16, 1.26] 1.05× [1.00, 1.10] 2 1.32× [1.27, 1.37] 0.99× [0.94, 1.04] 3 1.26×"
    best = "1 request at a time: 2 draft tokens are the best number (between 1 and 3): "
    best += "predicted 1.32× [1.27, 1.36] at τ 1.88; break-even τ 1.43"
    refused = "8 requests at a time: this cannot be told: the times of 12 rounds differ by more than drafts gain or cost, at best 1.05×"
    card = "Speed-up in vllm 1.31× At 1 request at a time, τ 1.89. 23 of 24 answers identical to the server's own without the draft, "
    card += "1 parts at a tie of two logits, 0 beyond."
    gap = "Served against own τ +0.4% ✓ passed vllm counts τ 1.894; our own walk over the very text that it wrote gives 1.887."
    for expected in (datasets, alone, pooled, served, predicted, best, refused, card, gap, "Served by vllm 0.32.0"):
        assert expected in text, expected


def test_the_same_numbers_give_the_same_bytes_and_pictures_of_an_earlier_page_go(folder, page, full_folder, tmp_path):
    """A last line of the metrics that a kill has cut does not count."""
    shutil.copytree(full_folder, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert write(tmp_path, results(), None) == page
    before, after = ({file.name: file.read_bytes() for file in (f / "charts").iterdir()} for f in (folder, tmp_path))
    assert before == after and all(picture.startswith(b"\x89PNG\r\n") for picture in after.values())
    assert after.keys() < {file.name for file in (full_folder / "charts").iterdir()}


def test_expected_counts_of_sampled_decoding_are_shown_and_nothing_is_called_lossless(tmp_path):
    sampled = results()
    sampled["offline"].update(steps=1013.25, tokens=1942.5, histogram=[617.25, 211.0, 132.0, 53.0])
    sampled["decode"].update(identical=0, ties=0, mismatches=0)
    page = write(tmp_path, sampled, None)
    assert (
        "1,942.5 tokens in 1,013.2\n" in page
        and ">617.2<" in page
        and "ossless" not in page.split("<h2>Acceptance")[0].split("</style>")[1]
    )


def test_a_first_loss_that_would_flatten_the_curve_is_cut_and_named():
    rows = metrics()
    rows[0]["loss"] = 54.6
    assert "axis cut: highest value 54.6" in "".join(chart.svg for chart in training_charts(rows))


def test_text_of_models_and_users_stays_text(page):
    parsed = Text(page)
    assert not {"script", "i"} & {tag for tag, _ in parsed.tags} and "a <b>" not in page
    assert TEMPLATE.format(HOSTILE) in parsed.text and "Tiny <i>target</i> + DFlash" in parsed.text and '"<config>"' in parsed.text


def test_coloured_tokens_join_to_the_answer(tmp_path):
    """Where no answer was timed alone, as of a batch, the first stands without times."""
    batch = results()
    batch["decode"]["picture"] = None
    assert Text(write(tmp_path, batch, None)).tokens == ANSWER


def test_the_table_shows_what_tells_prompts_apart(page):
    cells = re.findall(r'<td data-name="prompt"[^>]*>(.*?)</td>', page)
    assert cells[1:] == ["Why?&lt;|im_end|&gt;", "How?&lt;|im_end|&gt;"]


@pytest.mark.parametrize("which", ["page", "full_page"])
def test_the_page_needs_nothing_but_itself(request, which):
    page = request.getfixturevalue(which)
    assert set(re.findall(r"https?://[^\"'<\s]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    tags = Text(page).tags
    assert not {"link", "script", "img", "iframe", "object", "image"} & {tag for tag, _ in tags}
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")]
    urls = re.findall(r"url\((.*?)\)", page)
    assert links and all(link.startswith("#") for link in links + urls) and "@import" not in page
    identifiers = {attributes["id"] for _, attributes in tags if "id" in attributes}
    assert {link[1:] for link in links + urls} <= identifiers


@pytest.mark.parametrize("missing", [("offline",), ("decode",), ("offline", "decode")])
def test_a_page_without_metrics_or_a_section_says_so(tmp_path, missing):
    page = write(tmp_path, {**results(), **dict.fromkeys(missing), "on_policy_share": None, "seed": None, "config": {}}, None)
    assert "no training curves" in page and "On-policy" not in page
    assert ("No offline evaluation was run" in page) == ("offline" in missing)
    assert ("Nothing was decoded" in page) == ("decode" in missing) == ("without and with the draft" not in page)
    assert page.count("<figure>") == (2 if len(missing) < 2 else 0)


def test_tiles_that_mean_pass_or_fail_look_so(page, tmp_path):
    changed = results()
    changed["decode"].update(mismatches=1, speedup_interval=[0.9, 1.2])
    failed = write(tmp_path, changed, None)
    tiles = [re.findall(r'class="card(.*?)"><h3>(.*?)</h3>', text)[2:4] for text in (page, failed)]
    assert tiles == [[(" good", "Speed-up"), (" good", "Lossless")], [(" open", "Speed-up"), (" bad", "Not lossless")]]
    assert page.count("✓ passed") == 2 and "✗ failed" in failed and "✓ passed" not in failed


def test_the_page_opens_with_its_verdict_and_says_what_made_it(page):
    """Each of them where nothing has to be opened to see it."""
    text = " ".join(Text(page).text.split())
    first = "Tiny <i>target</i> + DFlash 1.13× faster here, between 1.02 and 1.19; lossless: 0 of 3 answers differ beyond a rounding tie. "
    first += "2026-11-29 12:20 UTC · commit 3be6fbfcdb · torchspec 0.1.0 · x86_64 CPU, 2 threads One answer, without and with the draft"
    assert first in text
    seen = Text(re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)).text
    assert "torchspec eval --data 'a b.jsonl'" in seen and 'vllm serve TARGET --speculative-config \'{"method": "dflash"}\'' in seen


SPEEDS = [
    (1.313, [1.22, 1.4], "1.31× faster here, between 1.22 and 1.40", "good"),
    (0.83, [0.78, 0.9], "Slower here: 0.83× the plain speed, between 0.78 and 0.90", "bad"),
    (1.1, [0.97, 1.3], "Neither faster nor slower here for certain: 1.10× the plain speed, between 0.97 and 1.30", "open"),
    (1.4, None, "1.40× the plain speed here, measured once, so without an interval", "open"),
]


@pytest.mark.parametrize(("speedup", "interval", "sentence", "how"), SPEEDS)
def test_the_verdict_claims_what_the_interval_holds(speedup, interval, sentence, how):
    found = results()
    found["decode"].update(speedup=speedup, speedup_interval=interval, identical=0, ties=0, mismatches=0)
    assert (speed(found).sentence, speed(found).how, lossless(found)) == (sentence, how, None)
    assert verdict(found) == sentence + "."


def test_a_served_draft_has_a_verdict_of_its_server_and_nothing_measured_has_none():
    served = {**full_results(), "decode": None}
    assert verdict(served) == (
        "1.31× the plain speed in vllm at 1 request at a time, measured once, so without an interval; "
        "lossless: 0 of 24 answers differ beyond a rounding tie."
    )
    assert verdict({**results(), "decode": None}) == "Nothing was decoded, so speed-up and losslessness are unknown."
    wrong = results()
    wrong["decode"]["mismatches"] = 1
    assert "not lossless: 1 of 4 answers differs beyond a rounding tie." in verdict(wrong)


def test_one_answer_stands_in_time_without_and_with_the_draft(page):
    """By hand: after 3.25 seconds the draft's run is done, in three forwards; without it four of six tokens stand, of six forwards."""
    plain, draft = picture_of(results()).runs
    assert [(step.start, step.width, step.tokens) for step in draft.steps] == [(0, 0, 1), (0, 0.5, 4), (0.5, 0.15, 1)]
    assert [step.tokens for step in plain.steps] == [1] * 6 and plain.steps[-1].start + plain.steps[-1].width == 1
    assert (len(plain.written), plain.missing, len(draft.written), draft.missing) == (4, ANSWER[4][0] + ANSWER[5][0], 6, "")
    race = page[page.index('<div class="race">') : page.index("</section>")]
    assert race.count("<rect ") == 9 and "Without the draft: 6 tokens in 5.00 seconds and 6 steps" in race
    assert "Without the draft: 4 of 6 tokens" in race and "With the draft: all 6 tokens" in race and "After 3.25 seconds" in race


def test_bars_side_by_side_are_of_the_same_prompts(full_page):
    """Four data sets were walked and three decoded: beside a decoded bar stands the walk over its own prompts."""
    title = "τ offline and decoded"
    bars = drawn(full_page, title)
    assert [text for text in bars if re.fullmatch(r"\d\.\d\d", text)] == ["1.76"] * 4 + ["1.61"] * 3 + ["1.74"]
    assert "math500" not in bars and "decoded" in bars
    others = [name for name in TITLES if name != title]
    assert not any("decoded" in drawn(full_page, name) for name in others)


@pytest.mark.parametrize("which", ["page", "full_page"])
def test_the_page_is_read_without_eyes_mouse_and_width(request, which):
    """Pictures have words, what scrolls is reached by Tab, and cells know their column where a phone shows none."""
    page = request.getfixturevalue(which)
    tags = Text(page).tags
    figures = [attributes for tag, attributes in tags if tag == "svg"]
    assert figures and all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in figures)
    scrolls = [attributes for tag, attributes in tags if tag == "pre" or attributes.get("class") in ("wide", "text prompt")]
    assert scrolls and all(attributes.get("tabindex") == "0" for attributes in scrolls)
    tables = re.findall(r'<table class="rows.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert len(tables) >= 3 and all(table.count("<td ") == table.count("<td data-name=") > 0 for table in tables)
    assert "prefers-color-scheme: dark" in page


def test_a_draft_that_accepts_nothing_and_one_row_of_metrics_still_draw(tmp_path):
    empty = {"tau": 1.0, "tau_interval": None, "steps": 0, "tokens": 0, "histogram": [0] * 4, "slot_acceptance": [0.0] * 3, "prompts": 1}
    assert write(tmp_path, {**results(), "offline": empty, "decode": None}, metrics()[:1]).count("<figure>") == 6


def test_no_results_is_one_sentence_and_leaves_the_old_page(tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(UserError, match="no results.json.*torchspec eval"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_an_alarm_is_red_wherever_it_was_raised(tmp_path):
    """In the evaluation, and at a checkpoint of the run whose metrics lie beside it."""
    alarmed = {**results(), "served": full_results()["served"] | {"gap": -0.31, "alarm": "vllm accepts <less>"}}
    rows = [{"kind": "served", "step": 150, "engine": "vllm", "tau": 1.1, "own_tau": 1.6, "alarm": "step alarm"}]
    page = write(tmp_path, alarmed, rows)
    assert '<p class="bad">vllm accepts &lt;less&gt;.</p>' in page
    assert '<p class="bad">Step 150: step alarm.</p>' in page
    assert 'class="card bad"><h3>Served against own τ</h3><b>-31.0%</b>' in page


@pytest.mark.parametrize(
    ("learned", "label", "warned"),
    [([], "τ offline, held-out", False), (["heldout"], "τ offline, text that trained it", True), (None, "τ offline", False)],
)
def test_text_that_trained_the_draft_is_not_called_held_out(tmp_path, learned, label, warned):
    (tmp_path / "results.json").write_text(json.dumps({**results(), "trained_on": learned}))
    text = Text(write_report(tmp_path).read_text(encoding="utf-8")).text
    labels = [words for words in ("τ offline, held-out", "τ offline, text that trained it") if words in text] or ["τ offline"]
    assert labels == [label] and ("This draft was trained on heldout" in text) == warned


@pytest.mark.parametrize(
    ("losses", "taus", "sentence"),
    [
        ([8, 7, 6, 5, 5, 5, 5], [1.0, 1.0, 1.2], None),
        ([3, 2, 3.5, 3.6, 3.7, 3.8, 3.9], [1.4], "the loss is 3.700, above the 3.000 that it began with"),
        ([3, 9, 9, 9, 9], [1.4], None),  # too few lines to tell
        ([3, 9, 2, 9, 2, 2], [1.4], None),  # bad batches
        ([8, 7, 6, 5, 4, 4, 4], [1.2, 1.004, 1.0, 1.0], "held-out τ is 1.00 in 3 evaluations"),
        ([8, 7, 6, 5, 4, 4, 4], [1.0, 1.0], None),
    ],
)
def test_a_run_that_learns_nothing_says_so_on_its_page(tmp_path, losses, taus, sentence):
    evaluation = {"kind": "eval", "step": 1, "block_tau": 1.5, "training_block_tau": 2.0, "since_best": 0}
    rows = [{"kind": "train", "loss": loss} for loss in losses] + [{**evaluation, "tau": tau} for tau in taus]
    found = diverging(rows)
    assert found is None if sentence is None else found.startswith(sentence)
    if sentence:
        (tmp_path / "results.json").write_text(json.dumps(results()))
        common = {"step": 1, "tokens_per_second": 1.0, "block_tau": 1.0}
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({**common, **row}) + "\n" for row in rows))
        assert f"The run diverges: {found}." in Text(write_report(tmp_path).read_text(encoding="utf-8")).text
