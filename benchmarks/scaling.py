"""How τ grows with the text and with the draft: scaling.py DATA [--conversations N ...] [--width W ...], then scaling.py --fit

DATA as for learning.py, whose rules hold. An EAGLE-3.1 draft whose MLP has W columns trains from zero for two epochs of N conversations: a
random part of those that are not held out, and each part holds the smaller ones. Every training adds a row to FILE. `--fit` trains
nothing: it prints the rows, fits tau - 1 = a N^b to all but the largest N, says how far that was off there, and draws the picture.
"""

import argparse
import json
import math
import random
import statistics
from pathlib import Path

from family import METHODS, measure
from family_table import tau
from learning import WORK, Setting, keep, split
from matplotlib.axes import Axes

from torchspec.report.charts import BLUE, ORANGE, Series, chart, draw_lines, legend_above

FILE = Path(__file__).parent / "results" / "scaling.jsonl"
PICTURE = FILE.with_suffix(".png")
WIDTH = 1536  # of the target's own MLPs
EPOCHS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--conversations", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--width", type=int, nargs="+", default=[WIDTH])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", action="store_true", help="only read the rows")
    options = parser.parse_args()
    if options.fit:
        report([json.loads(line) for line in FILE.read_text().splitlines()])
        return
    if options.data is None:
        parser.error("DATA is missing; or give --fit to read what was measured")
    split(options.data)
    for width in options.width:
        for conversations in options.conversations:
            keep(grow(conversations, width, options.seed), FILE)


def grow(conversations: int, width: int, seed: int) -> dict:
    recipe = METHODS["eagle3"]
    setting = Setting(f"scaling-{width}", [*recipe.overrides, f"draft.intermediate_size={width}"], recipe.base)
    steps = EPOCHS * conversations // setting.config(1, seed).training.micro_batch_size
    row = measure(setting, steps, seed, f"dataset.train_data_path={part(conversations)}")
    return {"conversations": conversations, "width": width} | row


def part(conversations: int) -> Path:
    """So many of the training conversations, in an order that does not depend on how many."""
    lines = (WORK / "train.jsonl").read_text().splitlines(keepends=True)
    if conversations > len(lines):
        raise SystemExit(f"--conversations {conversations}: {WORK / 'train.jsonl'} holds {len(lines)}")
    random.Random(0).shuffle(lines)
    file = WORK / f"train-{conversations}.jsonl"
    file.write_text("".join(lines[:conversations]))
    return file


def report(rows: list[dict]) -> None:
    print("| conversations | steps | MLP | parameters | τ | every anchor |\n" + "|---" * 6 + "|")
    for row in sorted(rows, key=lambda row: (row["width"], row["conversations"])):
        print(
            f"| {row['conversations']} | {row['training_steps']} | {row['width']} | {row['parameters'] / 1e6:.1f}M "
            f"| {tau(row)} | {row['every_anchor']:.3f} |"
        )
    grown = sorted((row["conversations"], row["tau"]) for row in rows if row["width"] == WIDTH)
    a, b = power_law(grown[:-1])
    largest, found = grown[-1]
    said = 1 + a * largest**b
    print(f"\nτ - 1 = {a:.4f} N^{b:.3f}: doubling the text multiplies it by {2**b:.2f}")
    print(f"at {largest} conversations, which the fit has not seen: {said:.2f} expected, {found:.2f} measured")
    draw(grown, a, b)


def power_law(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(N, tau) -> a, b of tau - 1 = a N^b, by least squares of the logarithms."""
    slope, intercept = statistics.linear_regression([math.log(n) for n, _ in points], [math.log(gained - 1) for _, gained in points])
    return math.exp(intercept), slope


def draw(grown: list[tuple[int, float]], a: float, b: float) -> None:
    law = Series("fit to all but the last", ORANGE, [1 + a * n**b for n, _ in grown])
    measured = Series("measured", BLUE, [found for _, found in grown])
    picture = chart("scaling", "Held-out τ of EAGLE-3.1 after two epochs", "", draw_curves, [f"{n:,}" for n, _ in grown], [law, measured])
    PICTURE.write_bytes(picture.png)


def draw_curves(axes: Axes, places: list[str], series: list[Series]) -> None:
    draw_lines(axes, places, series)
    axes.set(xlabel="conversations", ylabel="τ")
    legend_above(axes)


if __name__ == "__main__":
    main()
