"""Drafts side by side. What was not measured alike is refused: a comparison of it would be wrong, however well drawn."""

from os.path import commonprefix
from pathlib import Path

from rich.console import Console

from torchspec.errors import UserError
from torchspec.report.charts import COLOURS
from torchspec.report.numbers import Table
from torchspec.report.page import write_page
from torchspec.report.results import MODES, read_results, results_file, shown
from torchspec.report.side_by_side import Evaluation, charts_of, print_table, rows_to_compare

OF_THE_DRAFT = {"draft tokens per step"}  # protocol fields that come with the draft: these alone may differ


def compare(files: list[Path], out: Path, console: Console) -> Path:
    """files: results.json, or folders that hold one. Prints the table and writes out/compare.html and out/compare_charts/."""
    if not 2 <= len(files) <= len(COLOURS):
        raise UserError(f"compare takes 2 to {len(COLOURS)} evaluations, got {len(files)}; name as many")
    files = list(map(results_file, files))
    evaluations = list(map(Evaluation, names_of(files), COLOURS, map(read_results, files)))
    refuse_unlike_protocols(evaluations)
    mode = "offline" if all(e.results["offline"] for e in evaluations) else "decode"
    unlike = unlike_machines(evaluations)
    rows = rows_to_compare(evaluations, mode, speed=not unlike)
    charts = charts_of(evaluations, mode, speed=not unlike)
    print_table(evaluations, rows, mode, console)
    if unlike:
        console.print(f"Speed-ups are left out: {unlike}.", markup=False)
    out.mkdir(parents=True, exist_ok=True)
    shared = {name: value for name, value in evaluations[0].results["protocol"].items() if name not in OF_THE_DRAFT}
    facts = {"mode": MODES[mode], "unlike": unlike, "shared": shared}
    values = {"evaluations": evaluations, "rows": rows, "charts": charts, "drafts": drafts_table(evaluations), **facts}
    return write_page(out / "compare.html", "compare.html.jinja", values, charts, out / "compare_charts")


def drafts_table(evaluations: list[Evaluation]) -> Table:
    own = sorted(OF_THE_DRAFT)
    rows = [[e.name, e.results["title"], e.results["draft"], *(str(e.results["protocol"][name]) for name in own)] for e in evaluations]
    return Table("the drafts", ["name", "title", "draft", *own], rows, words=3)


def names_of(files: list[Path]) -> list[str]:
    """What tells the files apart: the part of their paths that is not common to all."""
    if len({file.resolve() for file in files}) < len(files):
        raise UserError(f"one results.json is named twice among {', '.join(map(str, files))}; name each once")
    paths = [file.resolve().with_suffix("").parts for file in files]
    opening, closing = len(commonprefix(paths)), len(commonprefix([path[::-1] for path in paths]))
    names = ["/".join(path[opening : len(path) - closing]) for path in paths]
    return names if all(names) and len(set(names)) == len(names) else list(map(str, files))


def refuse_unlike_protocols(evaluations: list[Evaluation]) -> None:
    protocols = [e.results["protocol"] | {"data sets": ", ".join(e.results["datasets"])} for e in evaluations]
    unlike = _differences(evaluations, protocols)
    if unlike:
        raise UserError(f"these evaluations were not measured alike: {unlike}; evaluate again with equal settings")


def unlike_machines(evaluations: list[Evaluation]) -> str:
    """Acceptance is the same on every machine, a speed is not. Empty where hardware and serving engine are equal."""
    served = [e for e in evaluations if e.results["served"]]
    engines = [{key: e.results["served"][key] for key in ("engine", "version")} for e in served]
    differences = (_differences(evaluations, [e.results["hardware"] for e in evaluations]), _differences(served, engines))
    return "; ".join(filter(None, differences))


def _differences(evaluations: list[Evaluation], facts: list[dict]) -> str:
    """`temperature is 0 in a, 1 in b; dtype is ...`; empty where all facts are equal."""
    texts = []
    for name in dict.fromkeys(name for one in facts for name in one if name not in OF_THE_DRAFT):
        values = [shown(one[name]) if name in one else "absent" for one in facts]
        if len(set(values)) > 1:
            texts.append(f"{name} is " + ", ".join(f"{value} in {e.name}" for value, e in zip(values, evaluations, strict=True)))
    return "; ".join(texts)
