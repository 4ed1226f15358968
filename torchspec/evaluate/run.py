"""One evaluation of one draft: offline tau on what the target wrote, decoding beside plain decoding, break-even, results and report."""

import platform
import shlex
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

from torchspec import __version__
from torchspec.console import console
from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.encode import Options
from torchspec.decode.pair import Pair
from torchspec.decode.sequence import stop_ids
from torchspec.errors import ContractError, UserError
from torchspec.evaluate.break_even import break_even
from torchspec.evaluate.confidence import print_confidence, reported
from torchspec.evaluate.decoded import Decoded, Decoder, decode_results, examples
from torchspec.evaluate.lines import print_acceptance, print_break_even, print_stopped
from torchspec.evaluate.made_here import engine, hardware, made_here
from torchspec.evaluate.offline import by_context, measure_offline, total_of
from torchspec.evaluate.picture import picture
from torchspec.evaluate.questions import DATA_SETS
from torchspec.evaluate.trained_on import trained_on
from torchspec.export.card import NAMES
from torchspec.export.commands import serve_commands
from torchspec.files.contents import folder_key, key
from torchspec.files.kept import Kept
from torchspec.files.writing import writing
from torchspec.progress import with_progress
from torchspec.records import Prompt
from torchspec.regenerate.share import SHARE_SAMPLES, on_policy_share
from torchspec.report.results import RESULTS, write_results
from torchspec.report.tables import print_results, print_served
from torchspec.report.write import write_report
from torchspec.serve.options import Serving

TAU = "tokens committed per target forward, bonus token included, prefill not counted; plain decoding = 1.0"


@dataclass(frozen=True)
class Settings:
    decode: int | None  # prompts of each data set that are also decoded; None: all
    max_new_tokens: int
    limit: int | None = None  # conversations of each data set
    thinking: bool | None = None
    temperature: float = 0.0
    seed: int = 0
    serving: Serving | None = None  # servers to measure in as well
    concurrencies: tuple[int, ...] = (1, 8, 32)  # prompts sent to them at a time
    batch_size: int = 1  # prompts decoded together in this process
    title: str | None = None  # of the report; none: names of target and method
    least_survival: float = 0.0  # drafting stops where all drafts up to the next are accepted with less chance; 0: never


def evaluate_draft(pair: Pair, sources: dict[str, str], out: Path, settings: Settings, metadata: dict | None = None) -> dict:
    """sources: name -> conversations that the target wrote. Writes results.json, report.html and charts into `out`.

    A token that differs from plain greedy decoding, and is no tie, is an error. What an earlier run of the same protocol has
    measured is taken over, prompt by prompt.
    """
    with evaluating(pair, out):
        return _evaluate(pair, sources, out, settings, metadata or {})


def evaluating(pair: Pair, out: Path) -> AbstractContextManager[None]:
    """While one evaluation writes into `out`: the target's answers, and what is measured on them."""
    if out.resolve() in (pair.draft.resolve(), pair.folder.resolve()):
        raise UserError(f"--out {out} is the folder of what is measured, whose contents would change; name another")
    return writing(out / RESULTS, "torchspec eval", lambda: f"what was measured is kept in {out}, and the same command goes on from there")


def _evaluate(pair: Pair, sources: dict[str, str], out: Path, settings: Settings, metadata: dict) -> dict:
    options = Options(settings.thinking, trust_remote_code=pair.target.spec.trust_remote_code)
    opened = {name: open_or_prepare(path, out / "prepared", pair.folder, options) for name, path in sources.items()}
    learned = trained_on(pair.draft, opened)
    prompts = {name: [data[i] for i in range(min(len(data), settings.limit or len(data)))] for name, data in opened.items()}
    protocol = _protocol(pair, opened, prompts, settings)
    made_from = _made_from(pair, protocol, settings)
    kept = Kept(out / "measured.jsonl", made_from)
    offline, decoded = _offline(pair, prompts, settings, kept), _decoded(pair, prompts, settings, kept)
    served = _served(pair, prompts, settings, made_from, out)
    everything = [row for rows in offline.values() for row in rows]
    all_decoded = [d for rows in decoded.values() for d in rows]
    walked = {name: [offline[name][d.prompt.index] for d in rows] for name, rows in decoded.items()}
    all_walked = [row for rows in walked.values() for row in rows]
    block_size = pair.method.block_size
    whole, decoding = _counts(pair, everything), decode_results(pair, all_decoded, total_of(block_size, all_walked))
    results = {
        "title": settings.title or f"{type(pair.method).__name__} draft for {pair.folder.name}",
        "target": str(pair.folder),
        "draft": str(pair.draft),
        "tau_definition": TAU,
        "trained_on": learned,
        "on_policy_share": None if settings.temperature else _on_policy_share(pair, opened),
        "protocol": protocol,
        "offline": whole,
        "decode": decoding and {**decoding, "examples": examples(pair, all_decoded), "picture": picture(pair, all_decoded)},
        "datasets": {
            name: {
                "domain": DATA_SETS[name].domain if name in DATA_SETS else None,
                "offline": _counts(pair, offline[name]),
                "decode": decode_results(pair, decoded[name], total_of(block_size, walked[name])),
                "by_context": by_context(offline[name]),
            }
            for name in prompts
        },
        "served": served,
        "break_even": break_even(pair, whole["slot_acceptance"]),
        "versions": made_from["versions"],
        "hardware": made_from["hardware"],
        "draft_contents": made_from["draft"],
        "seed": None,
        "config": {},
        "command": shlex.join(["torchspec", *sys.argv[1:]]),
        **made_here(),
        "serve": _serve(pair),
        **metadata,
    }
    write_results(results, out / RESULTS)
    write_report(out)
    print_results(results, console)
    print_break_even(results["break_even"])
    if settings.least_survival and decoding:
        print_stopped(decoding, settings.least_survival, block_size - 1)
    if served:
        print_served(served, console)
    wrong = [d for d in all_decoded if d.outcome == "mismatch"]
    if wrong:
        raise ContractError(
            f"{len(wrong)} of {len(all_decoded)} speculative answers differ from plain greedy decoding beyond rounding, "
            f"first in sample {wrong[0].prompt.index} at token {wrong[0].difference.position}; see {out / RESULTS}"
        )
    return results


def _offline(pair: Pair, prompts: dict[str, list[Prompt]], settings: Settings, kept: Kept) -> dict[str, list[dict]]:
    measured = {}
    for name, asked in prompts.items():
        started = time.perf_counter()
        measured[name] = [
            kept.get_or(f"offline {name} {p.index}", lambda p=p: measure_offline(pair, p, settings.temperature))
            for p in with_progress(iter(asked), f"offline {name}", len(asked), unit="conversations")
        ]
        total = total_of(pair.method.block_size, measured[name])
        console.print(f"offline {name}: τ {total.tau:.3f} on {len(asked)} conversations ({time.perf_counter() - started:.0f} s)")
        print_acceptance(total)
        print_confidence(reported(measured[name]))
    return measured


def _decoded(pair: Pair, prompts: dict[str, list[Prompt]], settings: Settings, kept: Kept) -> dict[str, list[Decoded]]:
    decoder, decoded = Decoder(pair, settings.max_new_tokens, settings.temperature, settings.seed, settings.least_survival), {}
    for name, asked in prompts.items():
        chosen = spread(asked, settings.decode)
        batches = [chosen[i : i + settings.batch_size] for i in range(0, len(chosen), settings.batch_size)]
        kept_rows = [kept.get_or(f"decode {name} {b[0].index}", lambda b=b: [d.to_json() for d in decoder.decode(b)]) for b in batches]
        rows = [row for batch in kept_rows for row in batch]
        decoded[name] = [Decoded.from_json(p, row, settings.temperature > 0) for p, row in zip(chosen, rows, strict=True)]
    return decoded


def _served(pair: Pair, prompts: dict[str, list[Prompt]], settings: Settings, made_from: dict, out: Path) -> dict | None:
    """All prompts of all data sets in real servers."""
    if settings.serving is None:
        return None
    from torchspec.serve.measure import measure_served  # its client is an extra
    from torchspec.serve.side import Asked

    kept = Kept(out / "served.jsonl", {**made_from, **asdict(settings.serving), "engine": engine(settings.serving)})
    stop = tuple(sorted(stop_ids(pair.target)))
    everything = [prompt for rows in prompts.values() for prompt in rows]
    asked = Asked(everything, settings.max_new_tokens, settings.temperature, settings.seed, stop)
    return measure_served(pair, asked, list(settings.concurrencies), settings.serving, kept, out / "logs")


def _serve(pair: Pair) -> dict[str, str]:
    """Engine -> the line that serves this draft."""
    lines = serve_commands(pair.method.config, str(pair.draft), str(pair.folder), pair.method.target.config.model_type)
    return {NAMES[engine]: line for engine, line in lines.items()}


def spread(prompts: list[Prompt], count: int | None) -> list[Prompt]:
    """Evenly over the file, which may be sorted by length or topic."""
    count = len(prompts) if count is None else min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _counts(pair: Pair, rows: list[dict]) -> dict:
    return {**total_of(pair.method.block_size, rows).to_json(), "prompts": len(rows), "confidence": reported(rows)}


def _on_policy_share(pair: Pair, opened: dict[str, PromptDataset]) -> float:
    shares = [on_policy_share(pair.target, dataset, SHARE_SAMPLES) for dataset in opened.values()]
    return sum(same for same, _ in shares) / sum(total for _, total in shares)


def _protocol(pair: Pair, opened: dict[str, PromptDataset], prompts: dict[str, list[Prompt]], settings: Settings) -> dict:
    """What another evaluation must share for its numbers to be comparable."""
    first = next(iter(opened.values())).manifest
    return {
        **{f"prompts: {name}": f"{len(asked)} conversations, contents {_contents(asked)}" for name, asked in prompts.items()},
        "target": f"contents {folder_key(pair.folder)}",
        "tau": TAU,
        "temperature": settings.temperature,
        "thinking": first.thinking,
        "template_hash": first.template_hash,
        "draft tokens per step": pair.method.block_size - 1,
        "decoded prompts of each data set": "all" if settings.decode is None else settings.decode,
        "most new tokens when decoding": settings.max_new_tokens,
        "prompts decoded together": settings.batch_size,
        "dtype": str(pair.target.model.dtype).removeprefix("torch."),
    }


def _made_from(pair: Pair, protocol: dict, settings: Settings) -> dict:
    """What a measured row is good for: beside the protocol the draft itself, what was drawn, and the machine that it was timed on."""
    return {
        **protocol,
        "draft": folder_key(pair.draft),
        "seed": settings.seed,
        "least survival": settings.least_survival,
        "hardware": hardware(pair.target.device),
        "versions": {
            "torchspec": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def _contents(prompts: list[Prompt]) -> str:
    """Of their tokens, and of which of these are answers."""
    return key([[p.ids.tolist(), p.spans()] for p in prompts])
