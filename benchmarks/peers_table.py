"""The table of peers.py's rows, Markdown on the screen: peers_table.py [FILE]

For each budget the methods of both projects, and how much more the best of ours gains over plain decoding than the best of theirs:
(tau - 1) / (tau - 1), seed by seed, their geometric mean with its 95% interval over seeds (Student's t of the logarithms).
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from peers import FILE

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}  # by the number of seeds; beyond, nearly the normal law's

Row = dict
Method = tuple[str, str]  # project, method


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1] if len(sys.argv) > 1 else FILE).read_text().splitlines()]
    compared = budgets(rows)
    print("| budget | project | method | steps | seconds | τ of each seed | mean |\n" + "|---" * 7 + "|")
    for name, some in compared.items():
        print("\n".join(lines(name, some)))
    print()
    for name, some in compared.items():
        print(f"{name}: {sentence(some)}")


def budgets(rows: list[Row]) -> dict[str, list[Row]]:
    """What is compared with what: runs of as many minutes, and ours on as many samples as one of theirs got through in such a run."""
    found = defaultdict(list)
    for row in rows:
        if row["minutes"] is not None:
            found[f"{row['minutes']:g} minutes"].append(row)
    for row in rows:
        if row["as_many_as"] is not None:
            found[f"as many samples as `{row['as_many_as']}`"].append(row)
    for row in rows:
        if (name := f"as many samples as `{row['method']}`") in found and row["project"] == "speculators":
            found[name].append(row)
    return found


def by_method(rows: list[Row]) -> dict[Method, list[Row]]:
    found = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["seed"]):
        found[row["project"], row["method"]].append(row)
    return found


def lines(name: str, rows: list[Row]) -> list[str]:
    return [
        f"| {name} | {project} | `{method}` | {_mean(some, 'training_steps'):.0f} | {_mean(some, 'seconds'):.0f} "
        f"| {' '.join(format(row['tau'], '.3f') for row in some)} | {_mean(some, 'tau'):.3f} |"
        for (project, method), some in sorted(by_method(rows).items(), key=lambda found: -_mean(found[1], "tau"))
    ]


def sentence(rows: list[Row]) -> str:
    methods = by_method(rows)
    ours, theirs = (best(methods, project) for project in ("torchspec", "speculators"))
    if ours is None or theirs is None:
        return "one project alone"
    ratio, interval = gained(methods[ours], methods[theirs])
    between = "one seed, no interval" if interval is None else f"[{interval[0]:.2f}, {interval[1]:.2f}]"
    return f"`{ours[1]}` gains {ratio:.2f} times what speculators' `{theirs[1]}` gains, {between}"


def best(methods: dict[Method, list[Row]], project: str) -> Method | None:
    """By the mean over its seeds."""
    return max((found for found in methods if found[0] == project), key=lambda found: _mean(methods[found], "tau"), default=None)


def gained(ours: list[Row], theirs: list[Row]) -> tuple[float, tuple[float, float] | None]:
    """(tau - 1) of ours over theirs, by seeds that both have; a row that comes later stands for an earlier one of the same seed."""
    ours, theirs = ({row["seed"]: row["tau"] - 1 for row in rows} for rows in (ours, theirs))
    logs = [math.log(ours[seed] / theirs[seed]) for seed in ours.keys() & theirs.keys()]
    middle = statistics.mean(logs)
    if len(logs) < 2:
        return math.exp(middle), None
    margin = T_95.get(len(logs), 2.0) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(middle), (math.exp(middle - margin), math.exp(middle + margin))


def _mean(rows: list[Row], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


if __name__ == "__main__":
    main()
