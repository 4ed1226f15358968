"""One evaluation of one draft: offline tau on held-out text, a decode compared with plain greedy decoding, results and report."""

import hashlib
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from torchspec import __version__
from torchspec.data.chat import ChatFormat
from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.encode import Options
from torchspec.data.regenerate import SHARE_SAMPLES, on_policy_share
from torchspec.errors import ContractError
from torchspec.evaluate.acceptance import Acceptance, evaluate_offline
from torchspec.evaluate.decode import Answer, Difference, first_difference, plain_decode, speculative_decode, stop_ids, token_texts
from torchspec.evaluate.report import write_report
from torchspec.inference import Pair
from torchspec.log import console
from torchspec.records import Prompt

WARM_UP_TOKENS = 16
TAU = "tokens committed per target forward, bonus token included, prefill not counted; plain decoding = 1.0"


@dataclass(frozen=True)
class Decoded:
    """One prompt, decoded twice."""

    prompt: Prompt
    plain: Answer
    speculative: Answer
    difference: Difference | None

    @property
    def outcome(self) -> str:
        return "identical" if self.difference is None else "tie" if self.difference.tie else "mismatch"

    @property
    def speedup(self) -> float:
        """Of the rates, since two answers that part at a tie differ in length."""
        return self.speculative.tokens_per_second / self.plain.tokens_per_second


def evaluate_draft(
    pair: Pair,
    data: str,
    out: Path,
    decode: int,
    max_new_tokens: int,
    limit: int | None,
    thinking: bool | None,
    metadata: dict | None = None,
) -> dict:
    """Writes results.json and report.html into `out`. A token that differs from plain greedy decoding, and is no tie, is an error."""
    out.mkdir(parents=True, exist_ok=True)
    dataset = open_or_prepare(data, out / "prepared", pair.folder, Options(thinking))
    prompts = [dataset[i] for i in range(min(len(dataset), limit or len(dataset)))]
    started = time.perf_counter()
    offline = evaluate_offline(pair.method, pair.model, pair.target, prompts)
    console.print(f"offline: τ {offline.tau:.3f} on {len(prompts)} conversations ({time.perf_counter() - started:.0f} s)")
    _print_acceptance(offline)
    decoded = _decode_all(pair, _spread(prompts, decode), max_new_tokens)
    same, total = on_policy_share(pair.target, dataset, SHARE_SAMPLES)
    whole = {**offline.to_json(), "tau_interval": None, "prompts": len(prompts)}
    decoding = _decode_results(pair, decoded) if decoded else None
    counts = decoding and {key: value for key, value in decoding.items() if key != "examples"}
    results = {
        "title": f"{pair.folder.name} + {pair.method.config.architectures[0]}",
        "target": str(pair.folder),
        "draft": str(pair.draft),
        "tau_definition": TAU,
        "on_policy_share": same / total,
        "protocol": _protocol(pair, dataset, prompts, max_new_tokens),
        "offline": whole,
        "decode": decoding,
        "datasets": {Path(data).stem: {"domain": None, "offline": whole, "decode": counts, "by_context": []}},
        "served": None,
        "break_even": None,
        "versions": {
            "torchspec": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "hardware": _hardware(pair.target.device),
        "seed": None,
        "config": {},
        "command": " ".join(sys.argv),
        **(metadata or {}),
    }
    partial = out / "results.json.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.rename(out / "results.json")
    write_report(out)
    wrong = [d for d in decoded if d.outcome == "mismatch"]
    if wrong:
        raise ContractError(
            f"{len(wrong)} of {len(decoded)} speculative answers differ from plain greedy decoding beyond rounding, "
            f"first in sample {wrong[0].prompt.index} at token {wrong[0].difference.position}; see {out / 'results.json'}"
        )
    return results


def _print_acceptance(acceptance: Acceptance) -> None:
    console.print("  accepted by slot   " + "  ".join(f"{k}: {rate:.0%}" for k, rate in enumerate(acceptance.slot_rates, start=1)))
    most = max(acceptance.histogram)
    for committed, steps in enumerate(acceptance.histogram[1:], start=1):
        console.print(f"  {committed:>3} tokens in {steps:>6} steps  {'█' * round(40 * steps / most)}")


def _spread(prompts: list[Prompt], count: int) -> list[Prompt]:
    """Evenly over the file, which may be sorted by length or topic."""
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _decode_all(pair: Pair, prompts: list[Prompt], max_new_tokens: int) -> list[Decoded]:
    for prompt in prompts[:1]:  # the first forwards of each shape are slow: once, untimed
        start, _ = prompt.spans()[0]
        plain_decode(pair.target, prompt.ids[:start], WARM_UP_TOKENS, set())
        speculative_decode(pair.target, pair.method.drafter(pair.model), prompt.ids[:start], WARM_UP_TOKENS, set())
    return [_decode(pair, prompt, max_new_tokens) for prompt in prompts]


def _decode(pair: Pair, prompt: Prompt, max_new_tokens: int) -> Decoded:
    """Plain and speculative, one right after the other, so that both see the same machine."""
    start, _ = prompt.spans()[0]
    ids, stop = prompt.ids[:start], stop_ids(pair.target)
    plain = plain_decode(pair.target, ids, max_new_tokens, stop)
    speculative = speculative_decode(pair.target, pair.method.drafter(pair.model), ids, max_new_tokens, stop)
    decoded = Decoded(prompt, plain, speculative, first_difference(pair.target, ids, plain.ids, speculative.ids))
    console.print(
        f"decode {prompt.index}: τ {_acceptance(pair, [decoded]).tau:.2f}, "
        f"{plain.tokens_per_second:.1f} -> {speculative.tokens_per_second:.1f} tok/s, {decoded.outcome}"
    )
    return decoded


def _acceptance(pair: Pair, decoded: list[Decoded]) -> Acceptance:
    total = Acceptance(pair.method.block_size)
    for d in decoded:
        total.add_answer(d.speculative.accepted, len(d.speculative.ids))
    return total


def _decode_results(pair: Pair, decoded: list[Decoded]) -> dict:
    acceptance = _acceptance(pair, decoded)
    plain_token = statistics.median(1 / d.plain.tokens_per_second for d in decoded)  # seconds
    step = statistics.median(
        d.speculative.seconds / len(d.speculative.accepted) for d in decoded if d.speculative.accepted
    )  # draft and verify
    tokenizer = ChatFormat.load(pair.folder, None, False).tokenizer
    return {
        **acceptance.to_json(),
        "tau_interval": None,
        "prompts": len(decoded),
        "speedup": statistics.median(d.speedup for d in decoded),
        "speedup_interval": None,
        "plain_tokens_per_second": 1 / plain_token,
        "speculative_tokens_per_second": statistics.median(d.speculative.tokens_per_second for d in decoded),
        "break_even_tau": step / plain_token,
        "identical": sum(d.outcome == "identical" for d in decoded),
        "ties": sum(d.outcome == "tie" for d in decoded),
        "mismatches": sum(d.outcome == "mismatch" for d in decoded),
        "examples": [_example(pair, d, tokenizer) for d in decoded],
    }


def _example(pair: Pair, decoded: Decoded, tokenizer) -> dict:
    answer, start = decoded.speculative, decoded.prompt.spans()[0][0]
    return {
        "prompt": tokenizer.decode(decoded.prompt.ids[:start], skip_special_tokens=True).strip(),
        "pieces": [
            [text, "draft" if drafted else "target"]
            for text, drafted in zip(token_texts(tokenizer, answer.ids), answer.from_draft, strict=True)
        ],
        "tau": _acceptance(pair, [decoded]).tau,
        "outcome": decoded.outcome,
        "plain_tokens_per_second": decoded.plain.tokens_per_second,
        "speculative_tokens_per_second": answer.tokens_per_second,
    }


def _protocol(pair: Pair, dataset: PromptDataset, prompts: list[Prompt], max_new_tokens: int) -> dict:
    """What another evaluation must share for its numbers to be comparable."""
    text = hashlib.sha256(b"".join(p.ids.numpy().tobytes() for p in prompts)).hexdigest()[:16]
    return {
        "target": str(pair.folder),
        "prompts": f"{len(prompts)} of {', '.join(Path(name).name for name in dataset.manifest.inputs)}, sha256 {text}",
        "temperature": 0,
        "thinking": dataset.manifest.thinking,
        "template_hash": dataset.manifest.template_hash,
        "draft tokens per step": pair.method.block_size - 1,
        "most new tokens when decoding": max_new_tokens,
        "dtype": str(pair.target.model.dtype).removeprefix("torch."),
        "tau": TAU,
    }


def _hardware(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {"device": name, "threads": torch.get_num_threads(), "system": platform.system()}
