"""The table and the picture of family.py's rows: family_table.py [FILE] -> Markdown on the screen, results/family.png"""

import json
import statistics
import sys
from pathlib import Path

from family import FILE, RATES, SPEEDS, cost

from torchspec.acceptance.interval import median_interval
from torchspec.report.charts import BLUE, ORANGE, Series, bars_height, chart, draw_bars
from torchspec.report.results import with_interval

PICTURE = FILE.with_suffix(".png")


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1] if len(sys.argv) > 1 else FILE).read_text().splitlines()]
    of_steps, of_minutes = ({row["method"]: row for row in rows if chosen(row)} for chosen in (equal_steps, equal_minutes))
    names = sorted(of_steps, key=lambda name: -of_minutes[name]["tau"])
    rates, speeds = (json.loads(file.read_text()) for file in (RATES, SPEEDS))
    print(table(names, of_steps, of_minutes, rates, speeds))
    print(survival(speeds))
    print(seeds(rows))
    draw(names, of_steps, of_minutes)


def equal_steps(row: dict) -> bool:
    return row["seed"] == 0 and row["as_long_as"] is None


def equal_minutes(row: dict) -> bool:
    return row["seed"] == 0 and row["as_long_as"] is not None


def table(names: list[str], of_steps: dict[str, dict], of_minutes: dict[str, dict], rates: dict, speeds: list[dict]) -> str:
    whole = {row["method"]: row for row in speeds if row["least_survival"] == 0}
    lines = [
        "| method | cost of a step | τ, equal steps | steps in equal minutes | τ, equal minutes | accepted by slot | parameters "
        "| proposal, ms | decode, tok/s | speed-up |",
        "|---" * 10 + "|",
    ]
    for name in names:
        steps, minutes, speed = of_steps[name], of_minutes[name], whole[name]
        lines.append(
            f"| `{name}` | {cost(rates, name):.2f} | {tau(steps)} | {minutes['training_steps']} | {tau(minutes)} "
            f"| {' '.join(f'{100 * share:.0f}' for share in minutes['slot_acceptance'])}% | {minutes['parameters'] / 1e6:.1f}M "
            f"| {statistics.median(speed['proposal_ms']):.1f} | {statistics.median(speed['speculative']):.1f} "
            f"| {speed_up(speed)} |"
        )
    return "\n".join(lines)


def speed_up(speed: dict) -> str:
    """Of the prompts, each by its own two rates."""
    ratios = [fast / plain for fast, plain in zip(speed["speculative"], speed["plain"], strict=True)]
    return with_interval(statistics.median(ratios), median_interval(ratios), "x")


def survival(speeds: list[dict]) -> str:
    """Fixed and confidence-driven draft lengths side by side."""
    lines = ["| draft | least survival | tokens per step | drafted per step | decode, tok/s | speed-up |", "|---" * 6 + "|"]
    sure = {row["method"] for row in speeds if row["least_survival"] > 0}
    for row in speeds:
        if row["method"] in sure:
            tokens, drafted, rate = row["tokens"] / row["steps"], row["drafted"] / row["steps"], statistics.median(row["speculative"])
            lines.append(f"| `{row['method']}` | {row['least_survival']} | {tokens:.2f} | {drafted:.2f} | {rate:.1f} | {speed_up(row)} |")
    return "\n".join(lines)


def tau(row: dict) -> str:
    low, high = row["tau_interval"]
    return f"{row['tau']:.3f} [{low:.2f}, {high:.2f}]"


def seeds(rows: list[dict]) -> str:
    """Of methods that were trained from several seeds."""
    found = {}
    for row in rows:
        found.setdefault((row["method"], row["as_long_as"], row["training_steps"]), []).append(row["tau"])
    several = {key: taus for key, taus in found.items() if len(taus) > 1}
    return "\n".join(
        f"{name}, {steps} steps: {statistics.mean(taus):.3f} ({', '.join(f'{tau:.3f}' for tau in taus)})"
        for (name, _, steps), taus in several.items()
    )


def draw(names: list[str], of_steps: dict[str, dict], of_minutes: dict[str, dict]) -> None:
    series = [
        Series(f"τ, {name}", colour, [of[method]["tau"] for method in names], [of[method]["tau_interval"] for method in names])
        for name, of, colour in (("equal minutes", of_minutes, BLUE), ("equal steps", of_steps, ORANGE))
    ]
    height = bars_height(len(names), len(series))
    picture = chart("family", "Held-out τ of every method", "", draw_bars, names, series, "plain decoding", height=height)
    PICTURE.write_bytes(picture.png)


if __name__ == "__main__":
    main()
