"""Several evaluations of one protocol: the rows of their table, and their charts."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchspec.report.charts import HEIGHT, LEGEND_LINE, Chart, Series, bars_height, chart, draw_lines, legend_above, short
from torchspec.report.result_charts import draw_speedups, draw_tau, tau_series
from torchspec.report.results import MODES, rows_of, with_interval


@dataclass(frozen=True)
class Evaluation:
    name: str
    colour: str
    results: dict


@dataclass(frozen=True)
class Cell:
    text: str  # value and interval
    difference: str  # to the first evaluation
    best: bool


@dataclass(frozen=True)
class Row:
    """A value per evaluation, None where an evaluation has none."""

    measure: str  # or data set
    values: list[float | None]
    intervals: list[list[float] | None]
    unit: str = ""

    @property
    def cells(self) -> list[Cell]:
        first, best = self.values[0], max((value for value in self.values if value is not None), default=None)
        cells = []
        for i, (value, interval) in enumerate(zip(self.values, self.intervals, strict=True)):
            if value is None:
                cells.append(Cell("–", "", best=False))
                continue
            difference = f"{value - first:+.2f}" if i > 0 and first is not None else ""
            cells.append(Cell(with_interval(value, interval, self.unit), difference, value == best))
        return cells


def rows_to_compare(evaluations: list[Evaluation], mode: str, speed: bool) -> list[Row]:
    """tau of `mode` per data set, then what else there is; speed-ups only where they can be compared."""
    rows = []
    for name in rows_of(evaluations[0].results):
        rows.append(_row(name, [rows_of(e.results)[name][mode] for e in evaluations], "tau"))
    decode = [e.results["decode"] for e in evaluations]
    if mode == "offline" and any(decode):
        rows.append(_row("τ decoded", decode, "tau"))
    if speed and any(decode):
        rows.append(_row("speed-up", decode, "speedup", "×"))
    if speed:
        for concurrency, speedups in served_speedups(evaluations).items():
            rows.append(Row(f"served at {concurrency}", speedups, [None] * len(speedups), "×"))
    return rows


def _row(measure: str, counts: list[dict | None], key: str, unit: str = "") -> Row:
    return Row(measure, [c and c[key] for c in counts], [c and c[f"{key}_interval"] for c in counts], unit)


def served_speedups(evaluations: list[Evaluation]) -> dict[int, list[float | None]]:
    """Concurrency -> speed-up of each evaluation."""
    served = [e.results["served"]["by_concurrency"] if e.results["served"] else [] for e in evaluations]
    found = [{row["concurrency"]: row["speedup"] for row in rows} for rows in served]
    return {concurrency: [one.get(concurrency) for one in found] for concurrency in sorted(set().union(*found))}


def print_table(evaluations: list[Evaluation], rows: list[Row], mode: str, console: Console) -> None:
    """Best in bold; a difference is to the first evaluation, on a line of its own where many stand side by side."""
    between = " " if len(evaluations) == 2 else "\n"
    table = Table(f"τ {MODES[mode]}", box=box.SIMPLE, collapse_padding=True)
    for i, evaluation in enumerate(evaluations):
        widest = max(len(row.cells[i].text) for row in rows)
        table.add_column(Text(evaluation.name), justify="right", overflow="fold", min_width=widest)
    for row in rows:
        cells = [Text.assemble((c.text, "bold" if c.best else ""), (c.difference and between + c.difference, "dim")) for c in row.cells]
        table.add_row(Text(row.measure), *cells)
    console.print(table)


def charts_of(evaluations: list[Evaluation], mode: str, speed: bool) -> list[Chart]:
    rows = list(rows_of(evaluations[0].results))
    taus = [tau_series(short(e.name), e.colour, e.results, mode) for e in evaluations]
    sentence = f"Tokens per target forward, {MODES[mode]}. Whiskers: 95% interval over prompts. Longer is better."
    height = bars_height(len(rows), len(taus))
    charts = [chart("tau_per_data_set", "τ per data set", sentence, draw_tau, rows, taus, height=height)]
    tall = HEIGHT + LEGEND_LINE * len(evaluations)
    slots = [Series(short(e.name), e.colour, e.results[mode]["slot_acceptance"]) for e in evaluations if e.results[mode]]
    sentence = "Share of steps that accept the draft token in slot k. A longer line: this draft proposes more tokens."
    charts.append(chart("slot_acceptance", "Acceptance per slot", sentence, _draw_slots, slots, height=tall))
    served = served_speedups(evaluations)
    if speed and served:
        speedups = zip(*served.values(), strict=True)
        lines = [Series(short(e.name), e.colour, list(values)) for e, values in zip(evaluations, speedups, strict=True)]
        sentence = "Output tokens per second with the draft, over the same server without it."
        charts.append(chart("speedup_by_concurrency", "Speed-up by concurrency", sentence, draw_speedups, list(served), lines, height=tall))
    return charts


def _draw_slots(axes: Axes, series: list[Series]) -> None:
    draw_lines(axes, [str(k + 1) for k in range(max(len(one.values) for one in series))], series)
    axes.set(xlabel="slot k of the block", ylabel="accepted")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend_above(axes)
