"""One evaluation as a table in the terminal."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchspec.report.results import ALL, MODES, rows_of, with_interval

FIRST_SLOTS = 4


def print_results(results: dict, console: Console) -> None:
    """A row per data set. τ, prompts and slots are those of the offline walk, or of decoding where nothing was walked."""
    mode = "offline" if results["offline"] else "decode"
    slots = min(FIRST_SLOTS, len(results[mode]["slot_acceptance"]))
    table = Table("data set", "domain", box=box.SIMPLE, collapse_padding=True)
    for heading in ("prompts", f"τ {MODES[mode]}", "speed-up", f"slots 1 to {slots}"):
        table.add_column(heading, justify="right")
    for name, entry in rows_of(results).items():
        table.add_row(*map(Text, _cells(name, entry, mode)), style="bold" if name == ALL else "")
    console.print(table)


def print_served(served: dict, console: Console) -> None:
    table = Table(f"{served['engine']} {served['version']}", box=box.SIMPLE, collapse_padding=True)
    for heading in ("τ", "plain tok/s", "draft tok/s", "speed-up", "TTFT ms", "TPOT ms"):
        table.add_column(heading, justify="right")
    for row in served["by_concurrency"]:
        plain, draft = row["plain"], row["draft"]
        rates = [f"{side['tokens_per_second']:.1f}" for side in (plain, draft)]
        times = [f"{plain[key]:.1f} → {draft[key]:.1f}" for key in ("ttft_ms", "tpot_ms")]
        table.add_row(f"{row['concurrency']} at a time", f"{row['tau']:.2f}", *rates, f"{row['speedup']:.2f}×", *times)
    console.print(table)
    console.print(f"our own walk over the text that {served['engine']} wrote: τ {served['own_tau']:.3f} ({served['gap']:+.1%} served)")
    console.print(served["law"], style="dim", markup=False)
    if served["alarm"]:
        console.print(f"ALARM: {served['alarm']}", style="bold red", markup=False)


def _cells(name: str, entry: dict, mode: str) -> list[str]:
    counts, decode = entry[mode], entry["decode"]
    speedup = f"{decode['speedup']:.2f}×" if decode else "–"
    if counts is None:
        return [name, entry["domain"] or "", "–", "–", speedup, "–"]
    rates = " ".join(f"{100 * rate:.0f}" for rate in counts["slot_acceptance"][:FIRST_SLOTS]) + "%"
    return [name, entry["domain"] or "", str(counts["prompts"]), with_interval(counts["tau"], counts["tau_interval"]), speedup, rates]
