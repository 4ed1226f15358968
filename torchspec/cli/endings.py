"""The last lines of a command: where its result lies, the number that matters, and what may be typed next."""

from pathlib import Path

from transformers import AutoConfig

from torchspec.config import RunConfig
from torchspec.console import command, print_rows
from torchspec.data.manifest import Manifest
from torchspec.decode.pair import Pair
from torchspec.export.card import NAMES
from torchspec.export.commands import HERE, QUESTION, gguf_command, serve_commands
from torchspec.methods.temperatures import FILE
from torchspec.regenerate.report import Counts
from torchspec.report.results import read_results, results_file, with_interval
from torchspec.rows.collect import Collected
from torchspec.training import checkpoints
from torchspec.training.checkpoint import read_json
from torchspec.training.evaluated import tau_of


def after_training(config: RunConfig) -> None:
    best = checkpoints.best(config.checkpoints)
    export = command("torchspec", "export", "--checkpoint", config.checkpoints, "-o", Path(config.output_dir) / "draft")
    print_rows({"result": str(best), "τ": tau_of(best), "next": export})


def after_export(checkpoint: Path, out: Path) -> None:
    """Of the folder that servers load."""
    target = read_json(checkpoint / "run.json")["model"]["target_model_path"]
    lines = serve_commands(AutoConfig.from_pretrained(out), str(out), target)
    if "llamacpp" in lines:
        folder = Path(f"{out}-gguf")
        export = command("torchspec", "export", "--checkpoint", checkpoint, "--format", "gguf", "--with-target", "-t", target, "-o", folder)
        served = gguf_command(AutoConfig.from_pretrained(out), folder / "target.gguf", folder / "draft.gguf")
        lines["llamacpp"] = f"{export} --llamacpp FOLDER && {served}"
    evaluate = command("torchspec", "eval", "-d", out, "-t", target, "--datasets", "gsm8k", "-o", f"{out}-eval")
    rows = {NAMES[engine]: line for engine, line in lines.items()}
    print_rows({"result": f"{out}, read back and equal", "τ": tau_of(checkpoint), **rows, "next": evaluate})


def after_gguf(checkpoint: Path, out: Path, with_target: bool) -> None:
    served = out / "target.gguf" if with_target else Path("target.gguf")
    line = gguf_command(AutoConfig.from_pretrained(checkpoint), served, out / "draft.gguf")
    print_rows({"result": f"{out / 'draft.gguf'}, read back and equal", "τ": tau_of(checkpoint), "next": line})


def after_tensors(checkpoint: Path, out: Path) -> None:
    folder = command("torchspec", "export", "--checkpoint", checkpoint, "-o", out.with_suffix(""))
    print_rows({"result": f"{out}, read back and equal", "τ": tau_of(checkpoint), "next": f"{folder}    # the folder that servers load"})


def after_evaluation(pair: Pair, target: str, text: list[str], out: Path, results: dict) -> None:
    """text: the options that named it. Next is the same in an engine, or, measured there, the line that serves it."""
    lines = serve_commands(pair.method.config, str(pair.draft), target, pair.method.target.config.model_type)
    started = ["torchspec", "eval", "-d", pair.draft, "-t", target, *text]
    rows = {"result": str(out / "report.html"), **numbers(results)}
    engine = next(iter(lines))
    if results["served"]:
        rows["next"] = lines[results["served"]["engine"]]
    elif engine == HERE:
        rows["next"] = lines[HERE]
    else:
        rows["next"] = command(*started, "--mode", engine, "-o", f"{out}-{engine}")
    print_rows(rows)


def numbers(results: dict) -> dict[str, str]:
    measured, decode, served = results["offline"] or results["decode"], results["decode"], results["served"]
    found = {"τ": f"{with_interval(measured['tau'], measured['tau_interval'])} over {measured['prompts']} conversations"}
    if served:
        speeds = ", ".join(f"{row['speedup']:.2f}x with {row['concurrency']} at a time" for row in served["by_concurrency"])
        found["speed-up"] = f"{speeds}, in {served['engine']} {served['version']}"
    elif decode:
        found["speed-up"] = with_interval(decode["speedup"], decode["speedup_interval"], "x") + " decoded here"
    return found


def after_calibration(pair: Pair, target: str, data: str, found: dict) -> None:
    before, after = (sum(errors) / len(errors) for errors in (found["ece_before"], found["ece_after"]))
    out = f"{pair.draft}-eval"
    evaluate = command("torchspec", "eval", "-d", pair.draft, "-t", target, "--data", data, "--least-survival", 0.3, "-o", out)
    error = f"{before:.1%} -> {after:.1%}, mean of the slots"
    print_rows({"result": str(pair.draft / FILE), "calibration error": error, "next": evaluate})


def after_comparison(named: list[Path], page: Path) -> None:
    evaluations = [read_results(results_file(one)) for one in named]
    mode = "offline" if all(results["offline"] for results in evaluations) else "decode"
    best = max(evaluations, key=lambda results: results[mode]["tau"])
    tau = with_interval(best[mode]["tau"], best[mode]["tau_interval"])
    generate = command("torchspec", "generate", QUESTION, "-d", best["draft"], "-t", best["target"])
    print_rows({"result": str(page), "best τ": f"{tau}, {best['draft']}", "next": generate})


def after_preparing(out: Path, target: str, manifest: Manifest, options: list[str]) -> None:
    """options: keys of `dataset` that a run must share with what was prepared."""
    samples = f"{manifest.samples:,}, {manifest.tokens:,} tokens, {manifest.mask_share:.0%} supervised"
    print_rows({"result": str(out), "samples": samples, "next": train_on(target, out, options)})


def after_collecting(collected: Collected) -> None:
    regenerate = command("torchspec", "regenerate", collected.out, "-t", "TARGET", "-o", collected.out.with_name("train.jsonl"))
    print_rows({"result": str(collected.out), "conversations": f"{collected.written:,}", "next": regenerate})


def after_regenerating(out: Path, target: str, counts: Counts, options: list[str]) -> None:
    answers = f"{counts.rows:,} written, {counts.already_there:,} conversations were there"
    print_rows({"result": str(out), "answers": answers, "next": train_on(target, out, options)})


def after_measuring(inputs: list[str], target: str) -> None:
    """The share stands above, input by input."""
    print_rows({"next": command("torchspec", "regenerate", *inputs, "-t", target, "-o", "train.jsonl")})


def train_on(target: str, data: Path, options: list[str]) -> str:
    keys = (f"model.target_model_path={target}", f"dataset.train_data_path={data}", *options)
    return command("torchspec", "train", "-c", "RECIPE.yaml", *keys)
