"""report.html: one self-contained page that shows what results.json and metrics.jsonl hold. Charts are inline SVG."""

import io
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from torchspec.errors import UserError

STYLE = {
    "svg.fonttype": "none",  # text stays text: small files, the page's own font
    "svg.hashsalt": "torchspec",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
}
BLUE, GREEN, GREY = "#2563eb", "#16a34a", "#9ca3af"


def write_report(folder: Path) -> Path:
    """Reads results.json and, where a run left one, metrics.jsonl in `folder`; writes report.html beside them."""
    source = folder / "results.json"
    if not source.is_file():
        raise UserError(f"{folder.resolve()} holds no results.json, so there is nothing to report; run torchspec eval first")
    results = json.loads(source.read_text())
    rows = _metrics(folder / "metrics.jsonl")
    with rc_context(STYLE):
        charts = _charts(results, rows)
    environment = Environment(loader=PackageLoader("torchspec.evaluate", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html.jinja").render(results=results, charts=charts, pretty=_pretty)
    partial = folder / "report.html.partial"
    partial.write_text(page)
    return partial.replace(folder / "report.html")


def _metrics(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _pretty(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _charts(results: dict, rows: list[dict]) -> list[dict]:
    """Title, sentence and SVG of every chart that there is data for."""
    train, evaluations = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval"))
    modes = [(name, results[name], colour) for name, colour in (("offline", BLUE), ("decode", GREEN)) if results[name]]
    charts = []
    if train:
        charts.append(
            _chart("Acceptance length τ", "Training text (estimate over blocks) and held-out text (exact).", _tau, train, evaluations)
        )
        charts.append(_chart("Loss", "Weighted cross-entropy of the block's slots, in nats.", _loss, train))
        charts.append(_chart("Throughput", "Tokens trained per second; capturing the target's states is included.", _throughput, train))
    if modes:
        charts.append(
            _chart("Acceptance per slot", "How often the k-th drafted token is accepted; a wrong one ends the step.", _slots, modes)
        )
        charts.append(
            _chart("Tokens per target forward", "Share of steps that committed so many tokens, bonus included.", _histogram, modes)
        )
    return charts


def _chart(title: str, sentence: str, draw, *data) -> dict:
    figure = Figure(figsize=(5.6, 3.1), layout="constrained")
    draw(figure.add_subplot(), *data)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return {
        "title": title,
        "sentence": sentence,
        "svg": Markup(svg[svg.index("<svg") :]),
    }  # numbers and fixed labels only: nothing to escape


def _tau(axes, train: list[dict], evaluations: list[dict]) -> None:
    axes.plot([r["step"] for r in train], [r["block_tau"] for r in train], color=GREY, label="training text")
    if evaluations:
        axes.plot([r["step"] for r in evaluations], [r["tau"] for r in evaluations], "o-", color=BLUE, label="held-out text")
    axes.set(xlabel="optimizer step", ylabel="τ")
    axes.legend(frameon=False)


def _loss(axes, train: list[dict]) -> None:
    axes.plot([r["step"] for r in train], [r["loss"] for r in train], color=BLUE)
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.set_ylim(0, sorted(r["loss"] for r in train)[len(train) * 9 // 10] * 1.2)  # the first steps would hide the rest


def _throughput(axes, train: list[dict]) -> None:
    axes.plot([r["step"] for r in train], [r["tokens_per_second"] for r in train], color=BLUE)
    axes.set(xlabel="optimizer step", ylabel="tokens/s")
    axes.set_ylim(bottom=0)


def _slots(axes, modes: list[tuple[str, dict, str]]) -> None:
    _bars(axes, [(name, mode["slot_acceptance"], colour) for name, mode, colour in modes])
    axes.set(xlabel="slot k of the block", ylabel="accepted", ylim=(0, 1))


def _histogram(axes, modes: list[tuple[str, dict, str]]) -> None:
    _bars(axes, [(name, [count / mode["steps"] for count in mode["histogram"]], colour) for name, mode, colour in modes])
    axes.set(xlabel="tokens committed", ylabel="share of steps")


def _bars(axes, groups: list[tuple[str, list[float], str]]) -> None:
    """Side by side, the first bar over 1."""
    width = 0.8 / len(groups)
    for i, (name, heights, colour) in enumerate(groups):
        places = [k + 1 + (i - (len(groups) - 1) / 2) * width for k in range(len(heights))]
        axes.bar(places, heights, width, color=colour, label=name)
    axes.set_xticks(range(1, len(groups[0][1]) + 1))
    axes.legend(frameon=False)
