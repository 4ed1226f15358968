"""results.json, read back: what page, comparison and terminal take from it."""

import json
import math
from collections import defaultdict
from pathlib import Path

from torchspec.acceptance.draft_tokens import PAYS_NOT, UNKNOWN
from torchspec.errors import ContractError, UserError
from torchspec.files.whole import whole

RESULTS = "results.json"
PARTS = ("title", "draft", "tau_definition", "protocol", "hardware", "offline", "decode", "datasets", "served", "break_even")
MODES = {"offline": "offline", "decode": "decoded"}  # section of the file -> its name for readers
ALL = "all data sets"


def results_file(named: Path) -> Path:
    """Of an evaluation, which may be named by its folder."""
    return named / RESULTS if named.is_dir() else named


def read_results(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"{file} is no file; name a results.json that torchspec eval wrote")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are no text, or text that is no JSON
        raise UserError(f"{file} is no JSON ({error}); name a results.json that torchspec eval wrote") from error
    missing = [part for part in PARTS if part not in results] if isinstance(results, dict) else list(PARTS)
    if missing:
        raise UserError(f"{file} is no results.json, it lacks {', '.join(missing)}; name one that torchspec eval wrote")
    if broken := _not_finite(results):
        raise UserError(f"{file} holds numbers that are none ({', '.join(broken[:3])}); evaluate again")
    return results


def write_results(results: dict, file: Path) -> None:
    """Whole or not at all."""
    if broken := _not_finite(results):
        raise ContractError(f"{', '.join(broken[:3])} came out as NaN or infinity, so nothing is reported; look after the draft's weights")
    with whole(file) as partial:
        partial.write_text(json.dumps(results, indent=2) + "\n")


def _not_finite(value: object, name: str = "") -> list[str]:
    """`decode.speedup`, ...: where a number is NaN or infinite."""
    if isinstance(value, float):
        return [] if math.isfinite(value) else [name]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for part, inside in parts for found in _not_finite(inside, f"{name}.{part}" if name else str(part))]


def rows_of(results: dict) -> dict[str, dict]:
    """Data set -> its entry; a last row stands for all of them where there are several."""
    whole = {"domain": None, "offline": results["offline"], "decode": results["decode"]}
    return {**results["datasets"], **({ALL: whole} if len(results["datasets"]) > 1 else {})}


def by_domain(results: dict, mode: str) -> dict[str, float]:
    """Domain -> tau over the steps of its data sets. A data set without a domain, or without this mode, takes no part."""
    tokens, steps = defaultdict(float), defaultdict(float)
    for entry in results["datasets"].values():
        if entry["domain"] and entry[mode]:
            tokens[entry["domain"]] += entry[mode]["tokens"]
            steps[entry["domain"]] += entry[mode]["steps"]
    return {domain: tokens[domain] / steps[domain] for domain in steps if steps[domain]}


def by_context(entries: list[dict]) -> dict[tuple[int, int], float]:
    """(from, to) -> tau over the steps of all `entries` whose context has that many tokens."""
    tokens, steps = defaultdict(float), defaultdict(float)
    for row in (row for entry in entries for row in entry["by_context"]):
        tokens[row["from"], row["to"]] += row["tau"] * row["steps"]
        steps[row["from"], row["to"]] += row["steps"]
    return {span: tokens[span] / steps[span] for span in sorted(steps) if steps[span]}


def break_even_sentence(row: dict) -> str:
    """What a row of `break_even` says of one concurrency, of this machine at this time."""
    speedup = with_interval(row["speedup_at_best"], row["speedup_interval"], "×")
    if row["verdict"] == PAYS_NOT:
        return f"no number of draft tokens pays here: at best {speedup}"
    if row["verdict"] == UNKNOWN:
        return f"this cannot be told: the times of {row['rounds']} rounds differ by more than drafts gain or cost, at best {speedup}"
    low, high = row["best_draft_tokens_interval"]
    best = f"{row['best_draft_tokens']} draft tokens are the best number" + (f" (between {low} and {high})" if low < high else "")
    needed = with_interval(row["tau_needed"], row["tau_needed_interval"])
    return f"{best}: predicted {speedup} at τ {row['tau_at_best']:.2f}; break-even τ {needed}"


def with_interval(value: float, interval: list[float] | None, unit: str = "") -> str:
    """`1.92 [1.85, 1.99]`; one prompt has no interval."""
    return f"{value:.2f}{unit}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def count(value: float) -> str:
    """Counts are whole when decoding is greedy, expected values when it is sampled."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def shown(value: object) -> str:
    return "not set" if value is None else str(value)
