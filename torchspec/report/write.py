"""report.html: one self-contained page that shows what results.json and metrics.jsonl hold. Charts are inline SVG, and PNGs in charts/.

B = most tokens that one target forward commits; slots of a block are 1..B-1.
"""

import json
from os.path import commonprefix
from pathlib import Path

from torchspec.errors import UserError
from torchspec.report.diverging import diverging
from torchspec.report.in_time import picture_of
from torchspec.report.numbers import answers_table, break_even_table, served_table, tables_of
from torchspec.report.page import write_page
from torchspec.report.result_charts import acceptance_charts, break_even_charts, served_charts
from torchspec.report.results import break_even_sentence, read_results
from torchspec.report.training_charts import generalisation, training_charts
from torchspec.report.verdict import lossless, speed, verdict

PROMPT_CHARACTERS = 110


def write_report(folder: Path) -> Path:
    """Reads results.json and, where a run left one, metrics.jsonl in `folder`; writes report.html and charts/ beside them."""
    source = folder / "results.json"
    if not source.is_file():
        raise UserError(f"{folder.resolve()} holds no results.json, so there is nothing to report; run torchspec eval first")
    results = read_results(source)
    metrics = _metrics(folder / "metrics.jsonl")
    charts = {
        "training": training_charts(metrics),
        "acceptance": acceptance_charts(results),
        "served": served_charts(results["served"]),
        "break_even": break_even_charts(results["break_even"]),
    }
    learned = results["trained_on"]
    trained = "unknown" if learned is None else "some" if learned else "none"
    alarms = [row for row in metrics if row["kind"] == "served" and row["alarm"]]
    values = {
        "results": results,
        "charts": charts,
        "alarms": alarms,
        "trained": trained,
        "diverging": diverging(metrics),
        "generalisation": generalisation(metrics),
        **_words(results),
        **_tables(results),
    }
    return write_page(folder / "report.html", "report.html.jinja", values, sum(charts.values(), []), folder / "charts")


def _metrics(file: Path) -> list[dict]:
    """A last line without its newline was cut by a kill and does not count."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _words(results: dict) -> dict:
    said = {"verdict": verdict(results), "speed": speed(results), "lossless": lossless(results)}
    break_even = [(row["concurrency"], break_even_sentence(row)) for row in results["break_even"] or []]
    return {**said, "break_even": break_even, "picture": picture_of(results)}


def _tables(results: dict) -> dict:
    examples = results["decode"]["examples"] if results["decode"] else []
    return {
        "tables": tables_of(results),
        "served_numbers": results["served"] and served_table(results["served"]),
        "break_even_numbers": results["break_even"] and break_even_table(results["break_even"]),
        "examples": examples,
        "answers": answers_table(examples, _short_prompts([e["prompt"] for e in examples])),
        "config": json.dumps(results["config"], indent=2, ensure_ascii=False),
    }


def _short_prompts(prompts: list[str]) -> list[str]:
    """What tells prompts apart: the lines of the chat template and system message that all share go, a long rest is cut."""
    lines = [prompt.splitlines() for prompt in prompts]
    opening, closing = len(commonprefix(lines)), len(commonprefix([line[::-1] for line in lines]))
    own = [" ".join(line[opening : len(line) - closing]) for line in lines]
    texts = [part or prompt for part, prompt in zip(own, prompts, strict=True)]
    return [text if len(text) <= PROMPT_CHARACTERS else text[:PROMPT_CHARACTERS] + "…" for text in texts]
