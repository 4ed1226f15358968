"""Every draft method on the same data: family.py DATA [--method NAME ...] [--rates | --steps N | --as-long-as N] [--seed S ...]

DATA as for learning.py, whose rules hold: the last 48 conversations are held out, features stay on disk, each method trains from zero.
First `--rates`, while nothing else computes; from then on minutes are steps times these rates, so that training need not be alone.
A row of FILE per method and seed: held-out tau with its interval, the slots' shares, decoding beside plain decoding in this process,
parameters, and what a proposal costs (these two only mean something on a quiet machine).
"""

import argparse
import json
import statistics
from pathlib import Path

from learning import SETTINGS, TRIAL_STEPS, WORK, Setting, split

from torchspec.evaluate.break_even import draft_seconds
from torchspec.evaluate.run import Settings, evaluate_draft

FILE = Path(__file__).parent / "results" / "family.jsonl"
RATES = FILE.with_name("family_rates.json")
STEPS, ROUNDS = 300, 3
DECODED = 12  # prompts decoded in this process, plain and speculative
EAGLE3_BASE = Path(__file__).parent / "smollm2_gsm8k_eagle3.yaml"
PEAGLE_BASE = Path(__file__).parents[1] / "configs" / "hf_smollm2_peagle.yaml"
METHODS = {  # all propose five tokens at a time; ranks in proportion to a draft of ten million parameters and a table of 49,152 tokens
    "dflash": Setting("dflash", SETTINGS["recipe"]),
    "dspark": Setting("dspark", ["draft.method=dspark", "draft.block_size=5", "draft.markov_rank=64"]),
    "dflash2": Setting("dflash2", ["draft.method=dflash2", "draft.selector_rank=64", "draft.selector_top_k=8"]),
    "domino": Setting("domino", ["draft.method=domino", "draft.emb_dim=64", "draft.gru_hidden_dim=256"]),
    "lilicorr": Setting("lilicorr", ["draft.method=lilicorr", "draft.lilicorr_hidden_size=256"]),
    "xpress": Setting("xpress", ["draft.method=xpress", "draft.xpress_rank=64", "draft.xpress_mlp_hidden=128"]),
    "eagle3": Setting("eagle3", ["draft.ttt_length=5"], EAGLE3_BASE),
    "peagle": Setting("peagle", [], PEAGLE_BASE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", action="append", choices=METHODS, help="may be given several times; default: all")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--rates", action="store_true", help="only measure what a step of each takes, in turns, into RATES")
    budget.add_argument("--steps", type=int, default=STEPS)
    budget.add_argument("--as-long-as", type=int, metavar="N", help="as many steps as fit into the time of N steps of dflash, by RATES")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; default: 0")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    names = options.method or list(METHODS)
    split(options.data)
    if options.rates:
        RATES.write_text(json.dumps(rates(names), indent=2) + "\n")
        return
    seconds = {name: statistics.median(of_rounds) for name, of_rounds in json.loads(RATES.read_text()).items()}
    for name in names:
        share = 1.0 if options.as_long_as is None else seconds["dflash"] / seconds[name]
        steps = round((options.as_long_as or options.steps) * share)
        for seed in options.seed or [0]:
            row = {"equal": "steps" if options.as_long_as is None else "minutes"} | measure(METHODS[name], steps, seed)
            row["minutes"] = steps * seconds[name] / 60
            with options.out.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(json.dumps(row))


def rates(names: list[str]) -> dict[str, list[float]]:
    """Seconds of a step of each method, in rounds that each meet every method: a slow moment meets one round of all, not all of one."""
    found = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            found[name].append(METHODS[name].train(TRIAL_STEPS, 0, "evaluation.max_samples=1").seconds / TRIAL_STEPS)
            print(name, f"{found[name][-1]:.3f} s")
    return found


def measure(setting: Setting, steps: int, seed: int) -> dict:
    row, pair = setting.measure(steps, seed), setting.pair(steps, seed)
    results = evaluate_draft(
        pair, {"held out": str(WORK / "heldout.jsonl")}, WORK / f"eval-{setting.name}-{seed}-{steps}", Settings(DECODED, 128)
    )
    row["parameters"] = sum(parameter.numel() for parameter in pair.model.parameters())
    row["proposal_ms"] = 1e3 * statistics.median(draft_seconds(pair, 1) for _ in range(5))
    return row | {"offline": results["offline"], "decode": {k: v for k, v in results["decode"].items() if k != "examples"}}


if __name__ == "__main__":
    main()
