"""Every draft method on the same data: family.py DATA [--method NAME ...] [--rates | --speeds] [--steps N | --as-long-as N] [--seed S ...]

DATA as for learning.py, whose rules hold: the last 48 conversations are held out, features stay on disk, each method trains from zero.
First `--rates`, while nothing else computes; from then on minutes are steps times these rates, so that training need not be alone. Each
training adds a row to FILE: held-out tau with its interval, the slots' shares, parameters. `--speeds`, again on a quiet machine, decodes
in turns with the drafts of seed 0 that were trained so. family_table.py makes the table and the picture.
"""

import argparse
import json
import statistics
from pathlib import Path

from learning import SETTINGS, TRIAL_STEPS, Setting, every_anchor, keep, split

from torchspec.acceptance.walk import Acceptance
from torchspec.decode.offline import accepted_per_step
from torchspec.decode.pair import Pair
from torchspec.evaluate.break_even import drafts
from torchspec.evaluate.decoded import Decoded, Decoder, acceptance
from torchspec.evaluate.run import spread
from torchspec.records import Features

FILE = Path(__file__).parent / "results" / "family.jsonl"
RATES, SPEEDS = FILE.with_name("family_rates.json"), FILE.with_name("family_speeds.json")
STEPS, ROUNDS = 300, 3
DECODED, NEW_TOKENS = 12, 96  # prompts decoded in this process, plain and speculative
PROPOSALS = 5  # timed after each of them
LEAST_SURVIVAL = (0.0, 0.2, 0.4)  # of a draft that says how sure it is: below these it stops drafting
LABELS = 'draft.loss={"ce":1.0}'
EAGLE3_BASE = Path(__file__).parent / "smollm2_gsm8k_eagle3.yaml"
PEAGLE_BASE = Path(__file__).parents[1] / "configs" / "hf_smollm2_peagle.yaml"
SAME_LAYERS = "draft.target_layer_ids=[1,14,27]"
DSPARK = ["draft.method=dspark", "draft.block_size=5", "draft.markov_rank=64"]
DFLASH2 = ["draft.method=dflash2", "draft.selector_rank=64", "draft.selector_top_k=8"]
METHODS = {  # all propose five tokens at a time; ranks in proportion to a draft of ten million parameters and a table of 49,152 tokens
    "dflash": Setting("dflash", SETTINGS["recipe"]),
    "dspark": Setting("dspark", DSPARK),
    "dspark-labels": Setting("dspark-labels", [*DSPARK, LABELS, "draft.confidence_loss=0"]),
    "dflash2": Setting("dflash2", DFLASH2),
    "dflash2-labels": Setting("dflash2-labels", [*DFLASH2, LABELS, 'draft.selector_loss={"ce":1.0}']),
    "domino": Setting("domino", ["draft.method=domino", "draft.emb_dim=64", "draft.gru_hidden_dim=256"]),
    "lilicorr": Setting("lilicorr", ["draft.method=lilicorr", "draft.lilicorr_hidden_size=256"]),
    "xpress": Setting("xpress", ["draft.method=xpress", "draft.xpress_rank=64", "draft.xpress_mlp_hidden=128"]),
    "eagle3": Setting("eagle3", ["draft.ttt_length=5", SAME_LAYERS], EAGLE3_BASE),
    "peagle": Setting("peagle", [SAME_LAYERS], PEAGLE_BASE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", action="append", choices=METHODS, help="may be given several times; default: all")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--rates", action="store_true", help="only measure what a step of each takes, in turns, into RATES")
    instead.add_argument("--speeds", action="store_true", help="only decode with drafts that were trained before, in turns, into SPEEDS")
    budget = parser.add_mutually_exclusive_group()
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
    steps = steps_of(names, options.steps, options.as_long_as)
    if options.speeds:
        SPEEDS.write_text(json.dumps(speeds(steps), indent=2) + "\n")
        return
    for name in names:
        for seed in options.seed or [0]:
            keep(measure(METHODS[name], steps[name], seed) | {"as_long_as": options.as_long_as}, options.out)


def steps_of(names: list[str], steps: int, as_long_as: int | None) -> dict[str, int]:
    """What each method is trained for: as many steps, or as many minutes as as_long_as steps of dflash take."""
    if as_long_as is None:
        return dict.fromkeys(names, steps)
    found = json.loads(RATES.read_text())
    return {name: round(as_long_as / cost(found, name)) for name in names}


def rates(names: list[str]) -> dict[str, list[float]]:
    """Seconds of a step of each method, in rounds that each meet every method: a slow moment meets one round of all, not all of one."""
    found = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            found[name].append(METHODS[name].train(TRIAL_STEPS, 0, "evaluation.max_samples=1").seconds / TRIAL_STEPS)
            print(name, f"{found[name][-1]:.3f} s", flush=True)
    return found


def cost(found: dict[str, list[float]], name: str) -> float:
    """What a step takes beside one of dflash, each round for itself: the machine may be slower in one than in the next."""
    return statistics.median(ours / dflash for ours, dflash in zip(found[name], found["dflash"], strict=True))


def measure(setting: Setting, steps: int, seed: int, *more: str) -> dict:
    """Trains and scores. more: overrides of the training alone."""
    setting.train(steps, seed, *more)
    pair = setting.pair(steps, seed)
    row = {"method": setting.name, "overrides": setting.overrides, "seed": seed, "training_steps": steps}
    return row | score(pair, setting.held_out(pair, steps, seed))


def score(pair: Pair, held_out: list[Features]) -> dict:
    """The walk over the held-out conversations, whoever trained the draft."""
    total = Acceptance(pair.method.block_size)
    for features in held_out:
        for accepted, length in accepted_per_step(pair.method, pair.model, features):
            total.add_answer(accepted, length)
    return {
        **total.to_json(), "every_anchor": every_anchor(pair, held_out),
        "parameters": sum(parameter.numel() for parameter in pair.method.skeleton().parameters()),  # a loaded draft's are packed
    }  # fmt: skip


def speeds(steps: dict[str, int]) -> list[dict]:
    """Each held-out prompt is decoded in every way before the next one is; a proposal's time is taken as often."""
    pairs = {name: METHODS[name].pair(steps[name], 0) for name in steps}
    ways = [(name, survival) for name, pair in pairs.items() for survival in (LEAST_SURVIVAL if pair.method.confident else (0.0,))]
    decoders = {(name, survival): Decoder(pairs[name], NEW_TOKENS, 0.0, 0, survival) for name, survival in ways}
    proposals = {name: drafts(pair, 1) for name, pair in pairs.items()}
    first, *_ = pairs
    prompts = [features.prompt for features in METHODS[first].held_out(pairs[first], steps[first], 0)]
    decoded, proposal_ms = {way: [] for way in ways}, {way: [] for way in ways}
    for prompt in spread(prompts, DECODED):
        for way in ways:
            decoded[way] += decoders[way].decode([prompt])
            proposal_ms[way].append(1e3 * statistics.median(proposals[way[0]]() for _ in range(PROPOSALS)))
    return [
        {
            "method": name,
            "least_survival": survival,
            **speed(pairs[name], decoded[name, survival]),
            "proposal_ms": proposal_ms[name, survival],
        }
        for name, survival in ways
    ]


def speed(pair: Pair, decoded: list[Decoded]) -> dict:
    total = acceptance(pair, decoded)
    return {
        "plain": [d.plain.tokens_per_second for d in decoded], "speculative": [d.speculative.tokens_per_second for d in decoded],
        "tokens": total.tokens, "steps": total.steps, "drafted": sum(sum(d.speculative.drafted) for d in decoded),
    }  # fmt: skip


if __name__ == "__main__":
    main()
