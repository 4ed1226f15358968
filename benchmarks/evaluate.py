"""What evaluating costs: python benchmarks/evaluate.py TARGET DATA DRAFT [--prompts N] [--dflash-package FOLDER]

In one run, all of it interleaved so that both sides of a ratio see the same machine:

* the offline walk against decoding speculatively, on the same prompts: in float32 every count must be equal, in bfloat16 the ratio of the
  seconds is taken;
* our decoder against `dflash_generate` of the PyPI package (pip install --no-deps --target FOLDER dflash==0.1.0), the same DFlash
  draft, prompt by prompt, each with a target of its own: ours as this evaluator loads it, theirs as AutoModelForCausalLM does;
* the prompts decoded together, plainly and speculatively, with the rates of the batch.

DATA: conversations; their first prompts are answered here. Writes benchmarks/results/evaluate.json.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from torchspec.acceptance.sampling import GREEDY
from torchspec.acceptance.walk import Acceptance
from torchspec.data.dataset import open_or_prepare
from torchspec.decode.batch import plain_together, speculative_together
from torchspec.decode.offline import evaluate_offline
from torchspec.decode.pair import Pair, load_pair
from torchspec.decode.sequence import plain_decode, speculative_decode, stop_ids
from torchspec.evaluate.run import spread
from torchspec.records import Prompt

THREADS, MAX_NEW_TOKENS, WARM_UP, ROUNDS, BATCHES = 2, 128, 16, 3, (1, 4, 8)
RESULTS = Path(__file__).parent / "results" / "evaluate.json"


def main(target: str, data: str, draft: Path, count: int, package: Path | None) -> None:
    torch.set_num_threads(THREADS)
    prompts = first_prompts(load_pair(draft, target, "bfloat16", "cpu", False), data, count)
    results = {
        "command": " ".join(sys.argv),
        "machine": {"cpu": cpu(), "threads": THREADS, "torch": torch.__version__, "transformers": transformers.__version__},
        "prompts": count,
        "most_new_tokens": MAX_NEW_TOKENS,
        "float32": equal_counts(load_pair(draft, target, "float32", "cpu", False), prompts),
        "bfloat16": offline_against_decode(load_pair(draft, target, "bfloat16", "cpu", False), prompts),
    }
    results["together"] = together(load_pair(draft, target, "bfloat16", "cpu", False), prompts)
    if package is not None:
        results["dflash 0.1.0"] = against_package(load_pair(draft, target, "bfloat16", "cpu", False), prompts, package)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def first_prompts(pair: Pair, data: str, count: int) -> list[torch.Tensor]:
    """Everything before a conversation's first answer, [L] each."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset = open_or_prepare(data, Path(scratch), pair.folder)
        chosen = spread([dataset[i] for i in range(len(dataset))], count)
        return [p.question.clone() for p in chosen]


def answered(pair: Pair, prompts: list[torch.Tensor]) -> list[Prompt]:
    """The target's own greedy answers: what the offline walk reads."""
    texts, stop = [], stop_ids(pair.target)
    for i, prompt in enumerate(prompts):
        ids = torch.cat((prompt, torch.tensor(plain_decode(pair.target, prompt, MAX_NEW_TOKENS, stop).ids)))
        texts.append(Prompt(i, ids, torch.arange(len(ids)) >= len(prompt)))
    return texts


def decoded(pair: Pair, prompts: list[torch.Tensor], most: int = MAX_NEW_TOKENS) -> Acceptance:
    total, drafter, stop = Acceptance(pair.method.block_size), pair.method.drafter(pair.model), stop_ids(pair.target)
    for prompt in prompts:
        answer = speculative_decode(pair.target, drafter, prompt, most, stop)
        total.add_answer(answer.accepted, len(answer.ids))
    return total


def equal_counts(pair: Pair, prompts: list[torch.Tensor]) -> dict:
    offline, decode = evaluate_offline(pair.method, pair.model, pair.target, answered(pair, prompts)), decoded(pair, prompts)
    if vars(offline) != vars(decode):
        raise SystemExit(f"offline and decode differ in float32: {vars(offline)} and {vars(decode)}")
    return {"tau": offline.tau, "steps": offline.steps, "tokens": offline.tokens, "offline_equals_decode": "every count"}


def offline_against_decode(pair: Pair, prompts: list[torch.Tensor]) -> dict:
    """Seconds of both, prefill included; a round is one after the other."""
    texts, seconds = answered(pair, prompts), {"offline": [], "decode": []}
    decoded(pair, prompts[:1], WARM_UP)
    evaluate_offline(pair.method, pair.model, pair.target, texts[:2])
    for _ in range(ROUNDS):
        for name, run in (
            ("offline", lambda: evaluate_offline(pair.method, pair.model, pair.target, texts)),
            ("decode", lambda: decoded(pair, prompts)),
        ):
            started = time.perf_counter()
            tau = run().tau
            seconds[name].append(time.perf_counter() - started)
            print(f"{name}: tau {tau:.4f}, {seconds[name][-1]:.2f} s", flush=True)
    ratios = [d / o for o, d in zip(seconds["offline"], seconds["decode"], strict=True)]
    return {"seconds": seconds, "ratios": ratios, "ratio": statistics.median(ratios)}


def together(pair: Pair, prompts: list[torch.Tensor]) -> list[dict]:
    """Batches of 1, 4 and 8: tokens of all answers over the seconds of all batches, plain and speculative in turn."""
    stop, rows = stop_ids(pair.target), []
    for size in BATCHES:
        answers = {"plain": [], "speculative": []}
        for start in range(-size, len(prompts), size):  # the first batch warms up
            batch = prompts[max(start, 0) :][:size]
            samplers, most = [GREEDY] * len(batch), MAX_NEW_TOKENS if start >= 0 else WARM_UP
            drafters = [pair.method.drafter(pair.model) for _ in batch]
            got = {
                "plain": plain_together(pair.target, batch, most, stop, samplers),
                "speculative": speculative_together(pair.target, drafters, batch, most, stop, samplers),
            }
            for name, found in got.items() if start >= 0 else ():
                answers[name] += found
        rates = {name: sum(len(a.ids) - 1 for a in found) / sum(a.seconds for a in found) for name, found in answers.items()}
        rows.append({"prompts_together": size, "tokens_per_second": rates, "speedup": rates["speculative"] / rates["plain"]})
        print(rows[-1], flush=True)
    return rows


def against_package(pair: Pair, prompts: list[torch.Tensor], package: Path) -> dict:
    """tok/s after the prefill, prompt by prompt; who goes first changes with every prompt."""
    sys.path.insert(0, str(package))
    from dflash import model as zlab

    zlab._cuda_time = time.perf_counter  # its statistics need CUDA only for the clock
    target = AutoModelForCausalLM.from_pretrained(pair.folder, dtype=torch.bfloat16).eval()
    draft, drafter = zlab.DFlashDraftModel.from_pretrained(pair.draft, dtype=torch.bfloat16).eval(), pair.method.drafter(pair.model)
    stop = stop_ids(pair.target)

    def ours(prompt: torch.Tensor, most: int) -> tuple[float, list[int]]:
        answer = speculative_decode(pair.target, drafter, prompt, most, stop)
        return answer.tokens_per_second, answer.ids

    def theirs(prompt: torch.Tensor, most: int) -> tuple[float, list[int]]:
        answer = zlab.dflash_generate(draft, target, prompt[None], most, sorted(stop), return_stats=True)
        seconds = answer.time_per_output_token * answer.num_output_tokens
        return (answer.num_output_tokens - 1) / seconds, answer.output_ids[0, len(prompt) :].tolist()

    rates, same = {ours: [], theirs: []}, 0
    for number, prompt in enumerate([prompts[0], *prompts]):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        got = {run: run(prompt, MAX_NEW_TOKENS if number else WARM_UP) for run in order}
        if number:
            same += got[ours][1] == got[theirs][1]
            for run, (rate, _) in got.items():
                rates[run].append(rate)
            print(f"ours {got[ours][0]:.1f} tok/s, theirs {got[theirs][0]:.1f}", flush=True)
    ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    return {
        "tokens_per_second": {"ours": statistics.median(rates[ours]), "theirs": statistics.median(rates[theirs])},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "answers_equal": same,
    }


def cpu() -> str:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("data")
    parser.add_argument("draft", type=Path)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--dflash-package", type=Path)
    arguments = parser.parse_args()
    main(arguments.target, arguments.data, arguments.draft, arguments.prompts, arguments.dflash_package)
