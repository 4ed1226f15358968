"""How charts are drawn: one figure is the SVG of a page and the PNG beside it."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

BLUE, GREEN, ORANGE, GREY, DARK = "#2563eb", "#16a34a", "#ea580c", "#9ca3af", "#1f2937"
COLOURS = (BLUE, ORANGE, GREEN, "#9333ea", "#0891b2", "#db2777", "#a16207", "#4b5563")
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's own font
    "svg.hashsalt": "torchspec",  # the same numbers give the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": DARK,
    "axes.labelcolor": DARK,
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
PNG_DPI = 200
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
LEGEND_LINE = 0.17  # inches
LEGEND_CHARACTERS = 63  # that fit into WIDTH beside each other, with 6 for each handle
NAME_CHARACTERS = 26


@dataclass(frozen=True)
class Chart:
    name: str  # of its PNG
    title: str
    sentence: str
    svg: Markup
    png: bytes


@dataclass(frozen=True)
class Series:
    """What one colour shows; None where there is nothing to show."""

    name: str
    colour: str
    values: list[float | None]
    intervals: list[list[float] | None] = field(default_factory=list)  # (low, high) of each value


def chart(name: str, title: str, sentence: str, draw: Callable, *data, height: float = HEIGHT) -> Chart:
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot(), *data)
        text, picture = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata=NO_METADATA, transparent=True)  # the page may be light or dark
        figure.suptitle(title, fontsize=11, fontweight="bold")  # the page has its own headings, a pasted picture has none
        figure.savefig(picture, format="png", dpi=PNG_DPI, metadata={"Software": None})
    svg = text.getvalue()
    words = Markup('<svg role="img" aria-label="{}"').format(f"{title}. {sentence}")
    return Chart(name, title, sentence, words + Markup(svg[svg.index("<svg") + 4 :]), picture.getvalue())  # matplotlib escapes names


def short(name: str) -> str:
    """The end of a name tells drafts and data sets apart. matplotlib's legends leave out what begins with an underscore."""
    name = " " + name if name.startswith("_") else name
    return name if len(name) <= NAME_CHARACTERS else "…" + name[1 - NAME_CHARACTERS :]


def legend_above(axes: Axes) -> None:
    names = axes.get_legend_handles_labels()[1]
    columns = LEGEND_CHARACTERS // (max(map(len, names)) + 6)
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1)}  # a reader's font may be wider: what is left of the axes has room
    axes.legend(ncols=max(1, min(columns, len(names))), columnspacing=1.2, handlelength=1.6, **place)


def draw_columns(axes: Axes, series: list[Series]) -> None:
    """Shares side by side; the first columns stand over 1."""
    width = 0.8 / len(series)
    for i, one in enumerate(series):
        places = [k + (i - (len(series) - 1) / 2) * width for k in range(1, len(one.values) + 1)]
        axes.bar(places, one.values, 0.94 * width, color=one.colour, label=one.name)
    axes.set_xticks(range(1, max(len(one.values) for one in series) + 1))
    axes.set_ylim(0, max(0.05, 1.1 * max(max(one.values) for one in series)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    legend_above(axes)


def bars_height(rows: int, series: int) -> float:
    """Inches that `draw_bars` needs, so that the number beside a bar does not touch the next one."""
    return 1.0 + rows * (0.12 + 0.17 * max(series, 1.5)) + LEGEND_LINE * series


def draw_bars(axes: Axes, rows: list[str], series: list[Series], plain: str) -> None:
    """One bar per row and series, from the top down, with a whisker over its interval. plain: what the line at 1 stands for."""
    thickness = 0.82 / len(series)
    axes.axvline(1.0, color=DARK, linestyle="--", linewidth=1, label=plain)
    for i, one in enumerate(series):
        places = [row + (i - (len(series) - 1) / 2) * thickness for row in range(len(rows))]
        axes.barh(places, [value or 0 for value in one.values], 0.9 * thickness, color=one.colour, label=one.name, zorder=0.9)
        ends = [value or 0 for value in one.values]
        for j, interval in enumerate(one.intervals):
            if interval is not None:
                low, high = interval
                axes.errorbar((low + high) / 2, places[j], xerr=(high - low) / 2, fmt="none", ecolor=DARK, elinewidth=1, capsize=1.8)
                ends[j] = max(ends[j], high)
        beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center_baseline", "fontsize": 8.5}
        for place, value, end in zip(places, one.values, ends, strict=True):
            if value is not None:
                axes.annotate(f"{value:.2f}", (end, place), **beside)
    axes.set_yticks(range(len(rows)), map(short, rows))
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(0, 1.12 * axes.get_xlim()[1])  # room for the numbers
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    legend_above(axes)


def shades(count: int) -> list[tuple]:
    """From dark to light, all to be seen on a light and on a dark page."""
    return [colormaps["viridis"](0.1 + 0.65 * i / count) for i in range(count)]


def draw_lines(axes: Axes, places: list[str], series: list[Series]) -> None:
    """Points at equal distances, whatever the places say; None is left out."""
    for one in series:
        known = [(i, value) for i, value in enumerate(one.values) if value is not None]
        axes.plot([i for i, _ in known], [value for _, value in known], marker="o", ms=3.5, color=one.colour, label=one.name)
    axes.set_xticks(range(len(places)), places)
