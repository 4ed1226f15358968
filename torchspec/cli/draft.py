"""A trained draft: written for servers, measured, compared, tried."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from torchspec.cli.options import (
    Device,
    Draft,
    DraftTokens,
    Dtype,
    EnginePython,
    LlamaCppFolder,
    MaxNewTokens,
    ServerArgs,
    Target,
    Thinking,
    Trust,
    is_on,
)
from torchspec.errors import UserError


class Format(StrEnum):
    HF = "hf"
    GGUF = "gguf"


class Mode(StrEnum):
    OFFLINE = "offline"
    DECODE = "decode"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"


def export(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="An iter_NNNNNNN folder, or a checkpoints folder (its best is taken).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a name ending in .pt takes the bare tensors.")],
    format: Annotated[
        Format, typer.Option(help="hf: for vLLM, SGLang and Transformers; gguf: draft.gguf for llama.cpp, made by its own converter.")
    ] = Format.HF,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="For gguf: the target, whose tokenizer goes into the file.", show_default=False)
    ] = None,
    with_target: Annotated[bool, typer.Option("--with-target", help="For gguf: write target.gguf as well.")] = False,
    llamacpp: LlamaCppFolder = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    trust_remote_code: Trust = False,
) -> None:
    """Write what servers load (vLLM, SGLang, Transformers; with --format gguf llama.cpp), read it back and compare."""
    from torchspec.cli.endings import after_export, after_gguf, after_tensors
    from torchspec.export.folder import check_free
    from torchspec.export.hf import export_checkpoint
    from torchspec.export.pt import export_tensors
    from torchspec.training.checkpoints import best

    if format is Format.GGUF and target is None:
        raise UserError("--format gguf needs --target: the converter takes the tokenizer from the model that the draft was trained for")
    check_free(out, force)
    source = checkpoint if (checkpoint / "state.json").is_file() else best(checkpoint)
    if format is Format.GGUF:
        from torchspec.export.gguf import export_gguf
        from torchspec.export.llamacpp import LlamaCpp
        from torchspec.target.fetch import resolve_target

        export_gguf(source, out, resolve_target(target), LlamaCpp.at(llamacpp), with_target, trust_remote_code)
        after_gguf(source, out, with_target)
    elif out.suffix == ".pt":
        after_tensors(source, export_tensors(source, out))
    else:
        after_export(source, export_checkpoint(source, out))


def evaluate(
    draft: Draft,
    target: Target,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json, report.html and its charts.")],
    draft_tokens: DraftTokens = None,
    title: Annotated[
        str | None, typer.Option(help="Headline of the report. Default: the names of target and method.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Conversations that the target wrote: JSONL or a prepared folder.", show_default=False)
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(
            help="Instead of --data, the target answers these: gsm8k, math500, aime24, aime25, humaneval, mbpp, livecodebench, "
            "swe-bench, mt-bench, alpaca; several with commas.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with NAME.jsonl of these data sets. Default: the hub.", show_default=False)
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="With --datasets: a running server of the target that answers them; as often as there are.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="offline: τ by one parallel pass; decode: every prompt is decoded here as well; vllm, sglang, llamacpp: every prompt is "
            "sent to that server, without and with the draft."
        ),
    ] = Mode.OFFLINE,
    decode: Annotated[
        int, typer.Option(help="In offline mode, prompts of each data set that are also decoded, plain and speculative.", min=0)
    ] = 8,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together here; rates are then those of the batch.", min=1)] = 1,
    least_survival: Annotated[
        float,
        typer.Option(
            help="When decoding here: stop drafting where the chance that all drafts up to the next are accepted, by the draft's "
            "confidence head, falls below. 0: draft all. Offline τ is of all drafts.",
            min=0,
            max=1,
        ),
    ] = 0.0,
    max_new_tokens: MaxNewTokens = 128,
    limit: Annotated[int | None, typer.Option(help="Only the first samples of each data set.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn at a temperature.", min=0)] = 0,
    concurrency: Annotated[str, typer.Option(help="Prompts sent to a server at a time, one measurement each.")] = "1,8,32",
    url: Annotated[
        str | None, typer.Option(help="Running server with the draft. Default: servers are started here.", show_default=False)
    ] = None,
    plain_url: Annotated[str | None, typer.Option(help="Running server without the draft; goes with --url.", show_default=False)] = None,
    engine_python: EnginePython = None,
    llamacpp: LlamaCppFolder = None,
    server_args: ServerArgs = "",
    thinking: Thinking = None,
    cache: Annotated[Path, typer.Option(help="Where the target's answers are kept.")] = Path("~/.cache/torchspec"),
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Acceptance length on what the target writes; decoding compared token by token with the plain one; real servers. Safe to kill."""
    if (data is None) == (datasets is None):
        raise UserError("give either --data (conversations that the target wrote) or --datasets (questions that it is to answer)")
    if data is not None and server:
        raise UserError("--server answers the questions of --datasets; --data is answered already, so leave one of them out")
    from torchspec.cli.endings import after_evaluation
    from torchspec.decode.pair import load_pair
    from torchspec.decode.ragged import refuse_all_but_full_attention
    from torchspec.evaluate.answers import answered
    from torchspec.evaluate.questions import questions
    from torchspec.evaluate.run import Settings, evaluate_draft

    asked = {name: questions(name, data_dir, limit) for name in datasets.split(",")} if datasets else {}
    decoded = {Mode.OFFLINE: decode, Mode.DECODE: None}.get(mode, 0)
    serving, concurrencies = None, ()
    if mode in (Mode.VLLM, Mode.SGLANG, Mode.LLAMACPP):
        from torchspec.serve.options import serving_options

        folder = llamacpp if mode is Mode.LLAMACPP else None
        serving, concurrencies = serving_options(mode.value, concurrency, url, plain_url, engine_python, server_args, folder)
    settings = Settings(
        decoded, max_new_tokens, limit, is_on(thinking), temperature, seed, serving, concurrencies, batch_size, title, least_survival
    )
    pair = load_pair(draft, target, dtype, device, trust_remote_code, draft_tokens)
    if batch_size > 1:
        refuse_all_but_full_attention(pair.target)
    sources = {Path(data).stem: data} if data else answered(pair, asked, settings, cache.expanduser(), out, server or [])
    results = evaluate_draft(pair, sources, out, settings)
    chosen = {"--data": data, "--datasets": datasets, "--limit": limit, "--draft-tokens": draft_tokens, "--thinking": thinking}
    text = [word for option, value in chosen.items() if value is not None for word in (option, value)]
    after_evaluation(pair, target, text, out, results)


def calibrate(
    draft: Draft,
    target: Target,
    data: Annotated[str, typer.Option(help="Held-out conversations that the target wrote: JSONL or a prepared folder.")],
    limit: Annotated[int | None, typer.Option(help="Only the first conversations.", min=1)] = None,
    cache: Annotated[Path, typer.Option(help="Where the prepared conversations are kept.")] = Path("~/.cache/torchspec"),
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Fit the temperatures of a draft's confidence, slot by slot, and write them into its folder as sts.json, which SGLang reads too."""
    from torchspec.cli.endings import after_calibration
    from torchspec.decode.pair import load_pair
    from torchspec.evaluate.confidence import calibrate as run

    pair = load_pair(draft, target, dtype, device, trust_remote_code)
    after_calibration(pair, target, data, run(pair, data, cache.expanduser(), limit))


def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Folders of two or more evaluations, or their results.json; differences are to the first.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for compare.html and compare_charts/.")],
) -> None:
    """Drafts side by side: a table, a page and pictures. Refuses evaluations that were not measured alike."""
    from torchspec.cli.endings import after_comparison
    from torchspec.console import console
    from torchspec.evaluate.compare import compare as run

    after_comparison(results, run(results, out, console))


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    draft: Draft,
    target: Target,
    draft_tokens: DraftTokens = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is sampled.", min=0)] = 0,
    thinking: Thinking = None,
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Stream the answer to one prompt: drafted tokens in green, the target's own in white; then τ and tok/s."""
    from torchspec.acceptance.sampling import Sampler
    from torchspec.decode.pair import load_pair
    from torchspec.decode.stream_answer import stream_answer

    pair = load_pair(draft, target, dtype, device, trust_remote_code, draft_tokens)
    asked = sys.stdin.read() if prompt == "-" else prompt
    stream_answer(pair, asked, max_new_tokens, is_on(thinking), Sampler(temperature, seed, pair.target.device))
