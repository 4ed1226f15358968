"""Charts of one results.json; each is drawn where there is something to show."""

from matplotlib import colormaps
from matplotlib.axes import Axes

from torchspec.report.charts import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    Chart,
    Series,
    bars_height,
    chart,
    draw_bars,
    draw_columns,
    draw_lines,
    legend_above,
)
from torchspec.report.results import ALL, MODES, by_context, by_domain, rows_of

MODE_COLOURS = {"offline": BLUE, "decode": GREEN}
PLAIN = "plain decoding"


def acceptance_charts(results: dict) -> list[Chart]:
    modes = [mode for mode in MODES if results[mode]]
    charts = [_data_sets(results, modes)] if modes and len(results["datasets"]) > 1 else []
    domains = {mode: by_domain(results, mode) for mode in modes}
    if any(len(taus) > 1 for taus in domains.values()):
        charts.append(_domains(domains))
    if modes:
        charts += [_slots(results, modes), _committed(results, modes)]
    if len(by_context(list(results["datasets"].values()))) > 1:
        charts.append(_contexts(results))
    return charts


def tau_series(name: str, colour: str, results: dict, mode: str) -> Series:
    """tau and its interval per data set, in the order of `rows_of`."""
    counts = [entry[mode] for entry in rows_of(results).values()]
    return Series(name, colour, [c and c["tau"] for c in counts], [c and c["tau_interval"] for c in counts])


def draw_tau(axes: Axes, rows: list[str], series: list[Series]) -> None:
    draw_bars(axes, rows, series, PLAIN)
    axes.set_xlabel("τ")
    if rows[-1] == ALL:
        axes.axhline(len(rows) - 1.5, color=GREY, linewidth=0.8)


def draw_speedups(axes: Axes, concurrencies: list[int], series: list[Series]) -> None:
    axes.axhline(1.0, color=DARK, linestyle="--", linewidth=1, label=PLAIN)
    draw_lines(axes, list(map(str, concurrencies)), series)
    axes.set(xlabel="requests at the same time", ylabel="speed-up (×)")
    axes.set_ylim(min(0.8, 0.95 * axes.get_ylim()[0]), 1.05 * axes.get_ylim()[1])
    legend_above(axes)


def _data_sets(results: dict, modes: list[str]) -> Chart:
    rows = list(rows_of(results))
    series = [tau_series(MODES[mode], MODE_COLOURS[mode], results, mode) for mode in modes]
    sentence = "Tokens per target forward. Whiskers: 95% interval over prompts. Longer is better."
    height = bars_height(len(rows), len(series))
    return chart("tau_per_data_set", "τ per data set", sentence, draw_tau, rows, series, height=height)


def _domains(domains: dict[str, dict[str, float]]) -> Chart:
    rows = list(dict.fromkeys(domain for taus in domains.values() for domain in taus))
    series = [Series(MODES[mode], MODE_COLOURS[mode], [taus.get(row) for row in rows]) for mode, taus in domains.items()]
    sentence = "Tokens per target forward over all data sets of a domain."
    return chart("tau_by_domain", "τ by domain", sentence, draw_tau, rows, series, height=bars_height(len(rows), len(series)))


def _slots(results: dict, modes: list[str]) -> Chart:
    series = [Series(MODES[mode], MODE_COLOURS[mode], results[mode]["slot_acceptance"]) for mode in modes]
    if results["served"]:
        first = results["served"]["by_concurrency"][0]
        series.append(Series(results["served"]["engine"], ORANGE, first["slot_acceptance"]))
    sentence = "Share of steps that accept the draft token in slot k. A wrong token also rejects all tokens after it."
    return chart("slot_acceptance", "Acceptance per slot", sentence, _draw_slots, series)


def _draw_slots(axes: Axes, series: list[Series]) -> None:
    draw_columns(axes, series)
    axes.set(xlabel="slot k of the block", ylabel="accepted")


def _committed(results: dict, modes: list[str]) -> Chart:
    series = [Series(MODES[mode], MODE_COLOURS[mode], step_shares(results[mode])) for mode in modes]
    sentence = "Share of steps that commit so many tokens, bonus token included. Plain decoding always commits 1."
    return chart("tokens_committed", "Tokens committed per target forward", sentence, _draw_committed, series)


def step_shares(counts: dict) -> list[float]:
    """[B] share of target forwards that committed 1..B tokens."""
    return [steps / (counts["steps"] or 1) for steps in counts["histogram"]]


def _draw_committed(axes: Axes, series: list[Series]) -> None:
    draw_columns(axes, series)
    axes.set(xlabel="tokens committed", ylabel="share of steps")


def _contexts(results: dict) -> Chart:
    whole = by_context(list(results["datasets"].values()))
    single = [by_context([entry]) for entry in results["datasets"].values()]
    series = [Series("_", GREY, [taus.get(span) for span in whole]) for taus in single]  # matplotlib lists no name of this kind
    sentence = "Tokens per target forward by the number of tokens before the step. Grey: single data sets."
    ends, total = [end for _, end in whole], Series(ALL, BLUE, list(whole.values()))
    return chart("tau_by_context", "τ by context length", sentence, _draw_contexts, ends, series, total)


def _draw_contexts(axes: Axes, ends: list[int], single: list[Series], whole: Series) -> None:
    axes.axhline(1.0, color=DARK, linestyle="--", linewidth=1, label=PLAIN)
    places = [f"{end // 1024}k" if end % 1024 == 0 else str(end) for end in ends]
    draw_lines(axes, places, single)
    for line in axes.get_lines()[1:]:
        line.set(linewidth=0.7, markersize=2)
    draw_lines(axes, places, [whole])
    axes.set(xlabel="context, up to this many tokens", ylabel="τ")
    legend_above(axes)


def served_charts(served: dict | None) -> list[Chart]:
    if served is None:
        return []
    rows = served["by_concurrency"]
    series = [Series(f"{served['engine']} with the draft", BLUE, [row["speedup"] for row in rows])]
    sentence = "Output tokens per second with the draft, over the same server without it."
    concurrencies = [row["concurrency"] for row in rows]
    return [chart("speedup_by_concurrency", "Speed-up by concurrency", sentence, draw_speedups, concurrencies, series)]


def break_even_charts(rows: list[dict] | None) -> list[Chart]:
    rows = [row for row in rows or [] if row["measurable"]]
    if not rows:
        return []
    sentence = "Predicted from what the slots accept and what this machine's forwards cost. A ring marks the best number."
    return [chart("break_even", "Predicted speed-up by number of draft tokens", sentence, _draw_break_even, rows)]


def _draw_break_even(axes: Axes, rows: list[dict]) -> None:
    """One line per concurrency, dark to light."""
    axes.axhline(1.0, color=DARK, linestyle="--", linewidth=1)
    slots = max(len(row["curve"]) for row in rows)
    for i, row in enumerate(rows):
        colour = colormaps["viridis"](0.9 * i / len(rows))
        draw_lines(axes, list(map(str, range(1, slots + 1))), [Series(str(row["concurrency"]), colour, row["curve"])])
        best = (row["best_draft_tokens"] - 1, row["speedup_at_best"])
        axes.plot(*best, marker="o", ms=9, markerfacecolor="none", markeredgecolor=colour)
    axes.set(xlabel="draft tokens per step", ylabel="speed-up (×)")
    axes.legend(title="concurrency", handlelength=1.2, loc="center left", bbox_to_anchor=(1, 0.5))
