"""report.html: one self-contained page that shows what results.json and metrics.jsonl hold. Charts are inline SVG.

B = most tokens that one target forward commits; slots of a block are 1..B-1.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from torchspec.errors import UserError

BLUE, GREEN, GREY = "#2563eb", "#16a34a", "#9ca3af"
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "svg.hashsalt": "torchspec",  # the same numbers give the same bytes
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": "#1f2937",
    "axes.labelcolor": "#1f2937",
    "axes.edgecolor": GREY,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
}
WIDTH, HEIGHT = 5.0, 2.9  # inches; 360 CSS px wide, so that 10 pt text is 11 px on a phone and 15 px in half of a wide page
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
PROMPT_CHARACTERS = 110


@dataclass(frozen=True)
class Chart:
    title: str
    sentence: str
    svg: Markup


@dataclass(frozen=True)
class Mode:
    """One way to measure acceptance; `counts` is its section of results.json."""

    name: str
    counts: dict
    colour: str

    @property
    def step_shares(self) -> list[float]:
        """[B] share of target forwards that committed 1..B tokens."""
        return [count / max(1, self.counts["steps"]) for count in self.counts["histogram"]]


def write_report(folder: Path) -> Path:
    """Reads results.json and, where a run left one, metrics.jsonl in `folder`; writes report.html beside them."""
    source = folder / "results.json"
    if not source.is_file():
        raise UserError(f"{folder.resolve()} holds no results.json, so there is nothing to report; run torchspec eval first")
    page = _page(json.loads(source.read_text(encoding="utf-8")), _metrics(folder / "metrics.jsonl"))
    partial = folder / "report.html.partial"
    partial.write_text(page, encoding="utf-8")
    return partial.replace(folder / "report.html")


def _metrics(file: Path) -> list[dict]:
    """A last line without its newline was cut by a kill and does not count."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _page(results: dict, rows: list[dict]) -> str:
    sections = (("offline", "offline", BLUE), ("decode", "decoded", GREEN))
    modes = [Mode(name, results[key], colour) for key, name, colour in sections if results[key]]
    examples = results["decode"]["examples"] if results["decode"] else []
    environment = Environment(loader=PackageLoader("torchspec.evaluate", "."), autoescape=True, undefined=StrictUndefined)
    with rc_context(STYLE):
        return environment.get_template("report.html.jinja").render(
            results=results,
            curves=_curves(rows),
            modes=modes,
            acceptance=_acceptance_charts(modes),
            examples=list(zip(examples, _short_prompts([e["prompt"] for e in examples]), strict=True)),
            pretty=_pretty,
        )


def _pretty(value: dict) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _short_prompts(prompts: list[str]) -> list[str]:
    """What tells prompts apart: the lines of the chat template and system message that all share go, a long rest is cut."""
    lines = [prompt.splitlines() for prompt in prompts]
    opening, closing = len(commonprefix(lines)), len(commonprefix([line[::-1] for line in lines]))
    own = [" ".join(line[opening : len(line) - closing]) for line in lines]
    texts = [part or prompt for part, prompt in zip(own, prompts, strict=True)]
    return [text if len(text) <= PROMPT_CHARACTERS else text[:PROMPT_CHARACTERS] + "…" for text in texts]


def _chart(title: str, sentence: str, draw: Callable, *data) -> Chart:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    draw(figure.add_subplot(), *data)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=NO_METADATA)
    svg = text.getvalue()
    return Chart(title, sentence, Markup(svg[svg.index("<svg") :]))  # drawn from numbers and fixed labels: nothing to escape


def _curves(rows: list[dict]) -> list[Chart]:
    """Charts over optimizer steps that there is data for."""
    train, held_out = ([row for row in rows if row["kind"] == kind] for kind in ("train", "eval"))
    charts = []
    if train:
        charts.append(_chart("Training loss", "Weighted mean over the slots of a block. Lower is better.", _draw_loss, train))
    if train or held_out:
        sentence = "Tokens per target forward. Grey: estimate on training blocks. Blue: held-out text. Higher is better."
        charts.append(_chart("Acceptance length τ", sentence, _draw_tau, train, held_out))
    if train and "slot_accuracy" in train[0]:  # a method's own metric: another method may not have it
        sentence = "How often the draft's first choice is right, slot by slot. Late slots are harder."
        charts.append(_chart("Training accuracy per slot", sentence, _draw_accuracy, train))
    if train:
        sentence = "Training speed. The target's own forward passes (capture) are included."
        charts.append(_chart("Tokens per second", sentence, _draw_speed, train))
    return charts


def _acceptance_charts(modes: list[Mode]) -> list[Chart]:
    if not modes:
        return []
    sentence = "Share of steps that accept the draft token in slot k. A wrong token also rejects all tokens after it."
    slots = _chart("Acceptance per slot", sentence, _draw_slots, modes)
    sentence = "Share of steps that commit so many tokens, bonus token included. Plain decoding always commits 1."
    return [slots, _chart("Tokens committed per target forward", sentence, _draw_histogram, modes)]


def _line(axes: Axes, rows: list[dict], key: str, **style) -> None:
    """A short curve shows its points: one point alone draws no line."""
    axes.plot([row["step"] for row in rows], [row[key] for row in rows], marker="o" if len(rows) < 20 else "", ms=3.5, **style)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _draw_loss(axes: Axes, train: list[dict]) -> None:
    _line(axes, train, "loss", color=BLUE)
    axes.set_ylabel("loss")
    losses = sorted(row["loss"] for row in train)
    usual = losses[len(losses) * 9 // 10]
    if losses[-1] > 2 * usual:  # the first steps would flatten the rest: say so, and leave them out
        axes.set_ylim(losses[0] - 0.1 * usual, 1.2 * usual)
        axes.text(0.98, 0.96, f"axis cut: highest value {losses[-1]:.1f}", ha="right", va="top", transform=axes.transAxes)


def _draw_tau(axes: Axes, train: list[dict], held_out: list[dict]) -> None:
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1, label="plain decoding")
    if train:
        _line(axes, train, "block_tau", color=GREY, label="training blocks")
    if held_out:
        _line(axes, held_out, "tau", color=BLUE, label="held-out text")
        best = max(held_out, key=lambda row: row["tau"])
        below = {"xytext": (0, -7), "textcoords": "offset points", "ha": "right", "va": "top"}  # the training curve runs above
        axes.annotate(f"best {best['tau']:.2f}", (best["step"], best["tau"]), color=BLUE, **below)
    axes.set_ylabel("τ")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1.2, handlelength=1.6)


def _draw_accuracy(axes: Axes, train: list[dict]) -> None:
    """One line per slot, dark to light."""
    slots = len(train[0]["slot_accuracy"])
    for slot in range(slots):
        rows = [{"step": row["step"], "accuracy": row["slot_accuracy"][slot]} for row in train]
        _line(axes, rows, "accuracy", color=colormaps["viridis"](0.9 * slot / slots), label=str(slot + 1))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 1 + slots // 9}
    axes.legend(title="slot", handlelength=1, columnspacing=0.8, **beside)


def _draw_speed(axes: Axes, train: list[dict]) -> None:
    _line(axes, train, "tokens_per_second", color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens/s")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_slots(axes: Axes, modes: list[Mode]) -> None:
    _draw_bars(axes, [(mode, mode.counts["slot_acceptance"]) for mode in modes])
    axes.set(xlabel="slot k of the block", ylabel="accepted")


def _draw_histogram(axes: Axes, modes: list[Mode]) -> None:
    _draw_bars(axes, [(mode, mode.step_shares) for mode in modes])
    axes.set(xlabel="tokens committed", ylabel="share of steps")


def _draw_bars(axes: Axes, groups: list[tuple[Mode, list[float]]]) -> None:
    """Shares side by side; the first group of bars stands over 1."""
    width = 0.8 / len(groups)
    for i, (mode, shares) in enumerate(groups):
        places = [k + (i - (len(groups) - 1) / 2) * width for k in range(1, len(shares) + 1)]
        axes.bar(places, shares, 0.94 * width, color=mode.colour, label=mode.name)
    axes.set_xticks(range(1, len(groups[0][1]) + 1))
    axes.set_ylim(0, max(0.05, 1.1 * max(max(shares) for _, shares in groups)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    axes.legend()
