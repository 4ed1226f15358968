"""Charts of one results.json; each is drawn where there is something to show."""

from matplotlib.axes import Axes

from torchspec.acceptance.draft_tokens import UNKNOWN
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
    shades,
)
from torchspec.report.results import ALL, MODES, by_context, by_domain, rows_of

MODE_COLOURS = {"offline": BLUE, "decode": GREEN}
PLAIN = "plain decoding"


def acceptance_charts(results: dict) -> list[Chart]:
    """Of the offline walk, or of decoding where nothing was walked: decoding is mostly of fewer prompts, and bars stand side by side only
    where they are of the same ones.
    """
    mode = next((mode for mode in MODES if results[mode]), None)
    if mode is None:
        return []
    charts = [_data_sets(results, mode)] if len(results["datasets"]) > 1 else []
    domains = by_domain(results, mode)
    if len(domains) > 1:
        charts.append(_domains(domains, mode))
    charts += [_slots(results, mode), _committed(results, mode)]
    if len(by_context(list(results["datasets"].values()))) > 1:
        charts.append(_contexts(results))
    return charts + ([_same_prompts(results)] if results["offline"] and results["decode"] else [])


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


def _same_prompts(results: dict) -> Chart:
    decoded = {name: entry["decode"] for name, entry in rows_of(results).items() if entry["decode"]}
    rows, counts = list(decoded), list(decoded.values())
    walked = [one["offline_tau"] for one in counts], [one["offline_tau_interval"] for one in counts]
    real = [one["tau"] for one in counts], [one["tau_interval"] for one in counts]
    series = [Series("offline", MODE_COLOURS["offline"], *walked), Series("decoded", MODE_COLOURS["decode"], *real)]
    prompts = results["decode"]["prompts"]
    sentence = f"The same {prompts} prompts, walked offline and really decoded. Decoding may end an answer earlier. Whiskers: 95% interval."
    height = bars_height(len(rows), len(series))
    return chart("tau_offline_and_decoded", "τ offline and decoded", sentence, draw_tau, rows, series, height=height)


def _data_sets(results: dict, mode: str) -> Chart:
    rows = list(rows_of(results))
    series = [tau_series(MODES[mode], MODE_COLOURS[mode], results, mode)]
    sentence = "Tokens per target forward. Whiskers: 95% interval over prompts. Longer is better."
    height = bars_height(len(rows), len(series))
    return chart("tau_per_data_set", "τ per data set", sentence, draw_tau, rows, series, height=height)


def _domains(domains: dict[str, float], mode: str) -> Chart:
    rows, series = list(domains), [Series(MODES[mode], MODE_COLOURS[mode], list(domains.values()))]
    sentence = "Tokens per target forward over all data sets of a domain."
    return chart("tau_by_domain", "τ by domain", sentence, draw_tau, rows, series, height=bars_height(len(rows), len(series)))


def _slots(results: dict, mode: str) -> Chart:
    series = [Series(MODES[mode], MODE_COLOURS[mode], results[mode]["slot_acceptance"])]
    if results["served"]:
        first = results["served"]["by_concurrency"][0]
        series.append(Series(results["served"]["engine"], ORANGE, first["slot_acceptance"]))
    sentence = "Share of steps that accept the draft token in slot k. A wrong token also rejects all tokens after it."
    return chart("slot_acceptance", "Acceptance per slot", sentence, _draw_slots, series)


def _draw_slots(axes: Axes, series: list[Series]) -> None:
    draw_columns(axes, series)
    axes.set(xlabel="slot k of the block", ylabel="accepted")


def _committed(results: dict, mode: str) -> Chart:
    series = [Series(MODES[mode], MODE_COLOURS[mode], step_shares(results[mode]))]
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
    rows = [row for row in rows or [] if row["verdict"] != UNKNOWN]
    if not rows:
        return []
    sentence = "Predicted from what the slots accept and what this machine's forwards cost. Shaded: 95% interval. A ring: the best."
    return [chart("break_even", "Predicted speed-up by number of draft tokens", sentence, _draw_break_even, rows)]


def _draw_break_even(axes: Axes, rows: list[dict]) -> None:
    """One line per concurrency, dark to light."""
    axes.axhline(1.0, color=DARK, linestyle="--", linewidth=1)
    slots = max(len(row["curve"]) for row in rows)
    for row, colour in zip(rows, shades(len(rows)), strict=True):
        axes.fill_between(range(len(row["curve"])), *zip(*row["curve_intervals"], strict=True), color=colour, alpha=0.15, linewidth=0)
        draw_lines(axes, list(map(str, range(1, slots + 1))), [Series(str(row["concurrency"]), colour, row["curve"])])
        best = (row["best_draft_tokens"] - 1, row["speedup_at_best"])
        axes.plot(*best, marker="o", ms=9, markerfacecolor="none", markeredgecolor=colour)
    axes.set(xlabel="draft tokens per step", ylabel="speed-up (×)")
    axes.legend(title="concurrency", handlelength=1.2, loc="center left", bbox_to_anchor=(1, 0.5))
