"""Tables of RESULTS.md that a run writes itself, between `<!-- NAME -->` and `<!-- end of NAME -->`: write_results.py DEMO_FOLDER"""

import json
import sys
from pathlib import Path

from torchspec.report.results import RESULTS, break_even_sentence, count, read_results, with_interval
from torchspec.report.verdict import verdict

PAGE = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    folder = Path(sys.argv[1])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    page = between(PAGE.read_text(), "demo", demo_table(read_results(folder / RESULTS), rows))
    PAGE.write_text(page)
    print(f"{PAGE}: the demo's table is that of {folder}")


def between(page: str, name: str, table: str) -> str:
    """The page with this table in its place."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.split(opening)
    return before + opening + table + closing + rest.split(closing)[1]


def demo_table(results: dict, metrics: list[dict]) -> str:
    """metrics: rows of metrics.jsonl."""
    offline, decode, hardware, draft = results["offline"], results["decode"], results["hardware"], results["config"]["draft"]
    held_out, trained = ([row for row in metrics if row["kind"] == kind] for kind in ("eval", "train"))
    best = max(row["tau"] for row in held_out)
    taus = " / ".join(f"**{row['tau']:.2f}**" if row["tau"] == best else f"{row['tau']:.2f}" for row in held_out)
    made_on = f"{hardware['device']}, {hardware['threads']} threads"
    lines = {
        "made": f"{results['date']}, commit {results['commit'] or 'unknown'}, torchspec {results['versions']['torchspec']}, {made_on}",
        "data": f"{offline['prompts']} conversations held out, on-policy share {results['on_policy_share']:.1%}",
        "draft": f"{draft['method']}, {len(offline['slot_acceptance'])} draft tokens, {draft['num_anchors']} anchors",
        "training": f"{trained[-1]['step']} steps in {held_out[-1]['seconds'] / 60:.1f} minutes, capture and evaluation included",
        f"held-out τ at step {' / '.join(str(row['step']) for row in held_out)}": taus,
        "τ of the exported folder": f"{with_interval(offline['tau'], offline['tau_interval'])}, "
        f"{count(offline['tokens'])} tokens in {count(offline['steps'])} target forwards",
        f"accepted by slot 1..{len(offline['slot_acceptance'])}": " ".join(f"{rate:.0%}" for rate in offline["slot_acceptance"]),
        "decode": f"{verdict(results)} Plain: {decode['plain_tokens_per_second']:.1f} tok/s",
        f"τ of the {decode['prompts']} decoded answers": f"{decode['tau']:.2f}; offline {decode['offline_tau']:.2f}",
        "against plain greedy": f"{decode['identical']} identical, {decode['ties']} part at a tie, {decode['mismatches']} beyond",
        **{f"draft tokens that pay, {row['concurrency']} at a time": break_even_sentence(row) for row in results["break_even"]},
    }
    return "".join(["| | |\n|---|---|\n", *(f"| {name} | {value} |\n" for name, value in lines.items())])


if __name__ == "__main__":
    main()
