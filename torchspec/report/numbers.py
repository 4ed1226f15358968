"""The tables of report.html: the numbers behind its charts."""

from dataclasses import dataclass

from torchspec.report.results import ALL, MODES, by_context, count, rows_of, with_interval

NONE = "–"


@dataclass(frozen=True)
class Table:
    title: str
    headings: list[str]
    rows: list[list[str]]
    words: int = 1  # first columns that are text; the others are numbers
    total: bool = False  # the last row stands for all


def tables_of(results: dict) -> list[Table]:
    tables = [_datasets(results), _slots(results)] if results["offline"] or results["decode"] else []
    return tables + ([_contexts(results["datasets"])] if any(entry["by_context"] for entry in results["datasets"].values()) else [])


def _datasets(results: dict) -> Table:
    """A column that says nothing of any data set is left out."""
    rows = rows_of(results)
    columns = {"data set": list(rows), "domain": [entry["domain"] or "" for entry in rows.values()]}
    if results["offline"]:
        offline = [entry["offline"] for entry in rows.values()]
        columns["prompts"] = _column(offline, lambda one: str(one["prompts"]))
        columns["τ offline"] = _column(offline, lambda one: with_interval(one["tau"], one["tau_interval"]))
    if results["decode"]:
        decode = [entry["decode"] for entry in rows.values()]
        columns["decoded"] = _column(decode, lambda one: str(one["prompts"]))
        columns["τ offline, of these"] = _column(decode, lambda one: with_interval(one["offline_tau"], one["offline_tau_interval"]))
        columns["τ decoded"] = _column(decode, lambda one: with_interval(one["tau"], one["tau_interval"]))
        columns["speed-up"] = _column(decode, lambda one: with_interval(one["speedup"], one["speedup_interval"], "×"))
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    words = 1 + ("domain" in columns)
    return Table("data set by data set", list(columns), list(map(list, zip(*columns.values(), strict=True))), words, len(rows) > 1)


def _column(counts: list[dict | None], shown) -> list[str]:
    return [shown(one) if one else NONE for one in counts]


def _slots(results: dict) -> Table:
    modes = {f"{name}, {results[mode]['prompts']} prompts": results[mode] for mode, name in MODES.items() if results[mode]}
    headings = ["n", *(f"slot n accepted, {name}" for name in modes), *(f"steps with n tokens, {name}" for name in modes)]
    rows = []
    for n in range(len(next(iter(modes.values()))["histogram"])):
        accepted = [m["slot_acceptance"][n : n + 1] for m in modes.values()]
        rates = [f"{100 * rate[0]:.1f}%" if rate else NONE for rate in accepted]
        rows.append([str(n + 1), *rates, *(count(m["histogram"][n]) for m in modes.values())])
    return Table("slot by slot", headings, rows, words=0)


def _contexts(datasets: dict[str, dict]) -> Table:
    contexts = {name: by_context([entry]) for name, entry in datasets.items() if entry["by_context"]}
    several = len(contexts) > 1
    if several:
        contexts[ALL] = by_context(list(datasets.values()))
    spans = sorted({span for taus in contexts.values() for span in taus})
    rows = [[name, *(f"{taus[span]:.2f}" if span in taus else NONE for span in spans)] for name, taus in contexts.items()]
    return Table("τ by context length", ["context, tokens", *(f"{start} to {end}" for start, end in spans)], rows, total=several)


def served_table(served: dict) -> Table:
    headings = "requests at a time,τ,plain tok/s,draft tok/s,speed-up,plain TTFT,draft TTFT,plain TPOT,draft TPOT".split(",")
    rows = [
        [
            str(row["concurrency"]),
            f"{row['tau']:.2f}",
            *(f"{row[side]['tokens_per_second']:.1f}" for side in ("plain", "draft")),
            f"{row['speedup']:.2f}×",
            *(f"{row[side]['ttft_ms']:.1f} ms" for side in ("plain", "draft")),
            *(f"{row[side]['tpot_ms']:.2f} ms" for side in ("plain", "draft")),
        ]
        for row in served["by_concurrency"]
    ]
    return Table("by concurrency", headings, rows, words=0)


def break_even_table(rows: list[dict]) -> Table:
    """Predicted speed-up of k draft tokens, a row for each k."""
    headings = ["draft tokens", *(f"speed-up at {row['concurrency']}" for row in rows)]
    cells = [[with_interval(*pair, "×") for pair in zip(row["curve"], row["curve_intervals"], strict=True)] for row in rows]
    return Table("of this chart", headings, [[str(k), *line] for k, line in enumerate(zip(*cells, strict=True), start=1)], words=0)


def answers_table(examples: list[dict], prompts: list[str]) -> Table:
    headings = ["prompt", "outcome", "τ", "plain tok/s", "with the draft", "speed-up"]
    rows = []
    for prompt, one in zip(prompts, examples, strict=True):
        plain, drafted = one["plain_tokens_per_second"], one["speculative_tokens_per_second"]
        rates = [f"{plain:.1f}", f"{drafted:.1f}", f"{drafted / plain:.2f}×" if plain else NONE]
        rows.append([prompt, one["outcome"], f"{one['tau']:.2f}", *rates])
    return Table("all decoded answers", headings, rows, words=2)
