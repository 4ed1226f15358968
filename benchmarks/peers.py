"""Our methods and those of pip's speculators on the same features: peers.py DATA --peer-path FOLDER --minutes M [--seed S ...]

FOLDER: speculators 0.9.0 with what it imports, as `make interop` puts it into .interop. DATA as for learning.py, whose rules hold:
the last 48 conversations are held out, features stay on disk, each draft trains from zero and is scored by the same walk. Both projects
read the same batches in the same order; everything else is each project's own recipe (family.py, peers_speculators.py). A trial of 20
steps first tells how many fit into the minutes, since both schedules end with the last step; then ours train once more, on as many
samples as the best of theirs got through. Minutes need the same number of threads for all (OMP_NUM_THREADS) and a machine where nothing
else computes, or where what does takes no time from them. Each run adds a row to FILE, peers_table.py makes the table:

    python benchmarks/peers.py DATA --peer-path .interop/speculators --minutes 5 --seed 0 --seed 1 --seed 2
    python benchmarks/peers_table.py
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from family import FILE as FAMILY
from family import METHODS, score
from learning import TRIAL_STEPS, keep, split
from peers_speculators import RECIPES, Peer

FILE = FAMILY.with_name("peers.jsonl")
OURS = ["eagle3", "dflash", "dspark-labels", "dflash2-labels"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-path", type=Path, required=True)
    parser.add_argument("--ours", nargs="*", choices=METHODS, default=OURS)
    parser.add_argument("--theirs", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; default: 0")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    split(options.data)
    runs: dict[tuple[str, str], Callable] = {("torchspec", name): lambda steps, seed, n=name: ours(n, steps, seed) for name in options.ours}
    runs |= {("speculators", name): Peer(name, options.peer_path).measure for name in options.theirs}
    for seed in options.seed or [0]:
        for (project, method), run in runs.items():
            row = {"project": project, "method": method, "seed": seed, "minutes": options.minutes, "as_many_as": None}
            keep(row | run(steps_in(options.minutes, seed, run), seed), options.out)
        if best := best_of_theirs(options.out, options.minutes, seed):
            for method in options.ours:
                row = {"project": "torchspec", "method": method, "seed": seed, "minutes": None, "as_many_as": best["method"]}
                keep(row | ours(method, best["training_steps"], seed), options.out)


def best_of_theirs(file: Path, minutes: float, seed: int) -> dict | None:
    """Among all that the file holds: the runs may be made bit by bit."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    theirs = [row for row in rows if (row["project"], row["minutes"], row["seed"]) == ("speculators", minutes, seed)]
    return max(theirs, key=lambda row: row["tau"], default=None)


def steps_in(minutes: float, seed: int, run: Callable) -> int:
    return int(60 * minutes * TRIAL_STEPS / run(TRIAL_STEPS, seed)["seconds"])


def ours(name: str, steps: int, seed: int) -> dict:
    setting = METHODS[name]
    seconds = setting.train(steps, seed).seconds  # up to the last step: its evaluation comes after
    pair = setting.pair(steps, seed)
    return {"training_steps": steps, "seconds": seconds, **score(pair, setting.held_out(pair, steps, seed))}


if __name__ == "__main__":
    main()
