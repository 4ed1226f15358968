"""Text: conversations made ready, and written anew by the target."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from torchspec.cli.options import (
    Device,
    Dtype,
    EnginePython,
    Language,
    LlamaCppFolder,
    MaxNewTokens,
    ServerArgs,
    Target,
    Thinking,
    Trust,
    is_on,
)
from torchspec.errors import UserError
from torchspec.regenerate.protocol import IN_FLIGHT


class Writer(StrEnum):
    HF = "hf"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Chats: .jsonl, .json (also .gz), .csv, .parquet, data sets as owner/name[:subset][:split], perfectblend; "
            "- is JSONL from stdin."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; without --target the .jsonl to write.")],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Folder or hub id of the target. Without it, conversations are cleaned and stay text."),
    ] = None,
    thinking: Thinking = None,
    last_turn_only: Annotated[bool, typer.Option(help="Supervise only the last assistant turn.")] = False,
    max_length: Annotated[
        int | None, typer.Option(help="Cut samples to this many tokens. Default: a run's own, of dataset.max_length.", min=2)
    ] = None,
    min_loss_tokens: Annotated[
        int | None,
        typer.Option(help="Leave out samples with fewer supervised tokens. Default: a run's own, of dataset.min_loss_tokens.", min=1),
    ] = None,
    max_rejected: Annotated[float, typer.Option(help="Largest share of unusable rows before this stops.", min=0, max=1)] = 0.1,
    sample_size: Annotated[int | None, typer.Option(help="Without --target: draw this many of the usable rows.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of that draw.", min=0)] = 0,
    language: Language = None,
    held_out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Report which of its prompts stand in what is prepared.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that encode. Default: one per core.", min=1, show_default=False)] = None,
    show: Annotated[int, typer.Option(help="Print this many samples, supervised tokens in colour.", min=0)] = 0,
    trust_remote_code: Trust = False,
) -> None:
    """Conversations -> token ids and loss mask, once, with a manifest of what was made of what; or -> clean conversations."""
    from torchspec.cli.endings import after_collecting, after_preparing
    from torchspec.console import console
    from torchspec.data.config import MAX_LENGTH, MIN_LOSS_TOKENS
    from torchspec.data.encode import Options
    from torchspec.data.leak import leak_into
    from torchspec.data.prepare import prepare as run
    from torchspec.data.show import show as show_samples
    from torchspec.files.writing import writing
    from torchspec.rows.collect import check_arguments, collect
    from torchspec.rows.language import Languages
    from torchspec.target.fetch import resolve_target

    check_arguments(out, target, sample_size, held_out, language or [])
    with writing(out, "torchspec prepare", lambda: f"{out} is as it was before"):
        if target is None:
            collected = collect(inputs, out, sample_size, seed, max_rejected, Languages(language or []))
            collected.report(console)
            return after_collecting(collected)
        lengths = max_length or MAX_LENGTH, min_loss_tokens or MIN_LOSS_TOKENS
        options = Options(is_on(thinking), last_turn_only, *lengths, max_rejected, trust_remote_code)
        folder = resolve_target(target)
        manifest = run(inputs, out, folder, options, workers=workers)
    console.print(
        f"{out}: {manifest.samples} samples, {manifest.tokens:,} tokens, {manifest.mask_share:.0%} supervised, "
        f"{manifest.truncated} cut" + (f" to {manifest.max_length} tokens" if manifest.truncated else "")
    )
    for kind, reasons in (("rejected", manifest.rejected), ("filtered", manifest.filtered)):
        for reason, count in reasons.items():
            console.print(f"  {kind} {count}: {reason} (listed in {out / 'rejected.jsonl'})", markup=False)
    if held_out is not None:
        console.print(leak_into(out, held_out, folder, options).sentence(), markup=False)
    if show:
        show_samples(out, show, console)
    chosen = {"last_turn_only": last_turn_only, "max_length": max_length, "thinking": is_on(thinking)}
    after_preparing(out, target, manifest, [f"dataset.{key}={str(value).lower()}" for key, value in chosen.items() if value is not None])


def regenerate(
    inputs: Annotated[list[str], typer.Argument(help="Chats as `prepare` reads them; their assistant turns are written anew.")],
    target: Target,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSONL to write, or to go on with.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Write nothing: report the on-policy share of the input.")] = False,
    engine: Annotated[
        Writer, typer.Option(help="What answers: hf (Transformers in this process), or an engine that is started here.")
    ] = Writer.HF,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A running server of the target that answers instead; as often as there are.", show_default=False),
    ] = None,
    in_flight: Annotated[int, typer.Option(help="Requests at a time, of each server.", min=1)] = IN_FLIGHT,
    check: Annotated[
        bool, typer.Option(help="Load the target here: it must agree with each --server, and the on-policy share is reported.")
    ] = True,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="0 decodes greedily. Several are dealt to the conversations. Default: 0.", min=0, show_default=False),
    ] = None,
    answers_per_prompt: Annotated[int, typer.Option(help="Answers of each prompt, each drawn by its own seed.", min=1)] = 1,
    last_turn_only: Annotated[
        bool, typer.Option("--last-turn-only", help="Answer the last turn; the earlier ones stay as they are.")
    ] = False,
    drop_cut: Annotated[bool, typer.Option("--drop-cut", help="Leave out answers that --max-new-tokens cuts.")] = False,
    drop_shorter: Annotated[int, typer.Option(help="Leave out answers of fewer tokens.", min=0)] = 0,
    script: Annotated[
        list[str] | None,
        typer.Option(help="Leave out answers in other scripts, as latin, cyrillic, cjk. Several may be named.", show_default=False),
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    max_length: Annotated[
        int | None,
        typer.Option(help="Most tokens of a prompt with its answer. Default: the target's positions.", min=2, show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="With --engine hf: conversations answered at a time.", min=1)] = 16,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.", min=1)] = None,
    language: Language = None,
    seed: int = 0,
    thinking: Thinking = None,
    engine_python: EnginePython = None,
    llamacpp: LlamaCppFolder = None,
    server_args: ServerArgs = "",
    gpus_per_server: Annotated[
        int, typer.Option(help="Of a started engine, tensor parallel; as many servers are started as the GPUs at hand make.", min=1)
    ] = 1,
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Let the target answer: the text a draft learns must be the text that is served. Safe to kill and start again."""
    from torchspec.chat.format import ChatFormat
    from torchspec.cli.endings import after_measuring, after_regenerating
    from torchspec.nn.device import resolve_device, resolve_dtype
    from torchspec.regenerate.answering import Engine, open_answering
    from torchspec.regenerate.drop import Drop
    from torchspec.regenerate.here import Here
    from torchspec.regenerate.run import Wanted, check_out
    from torchspec.regenerate.run import regenerate as run
    from torchspec.regenerate.share import report_share
    from torchspec.regenerate.turns import Sampling, Turns
    from torchspec.rows.language import Languages
    from torchspec.target.fetch import resolve_target

    temperatures, servers = tuple(temperature or (0.0,)), server or []
    if answers_per_prompt > 1 and 0.0 in temperatures:
        raise UserError(f"--answers-per-prompt {answers_per_prompt} needs every --temperature above 0: greedy answers are all the same")
    if servers and engine is not Writer.HF:
        raise UserError(f"give either --engine {engine.value}, which is started here, or --server, which runs already")
    here = Here(resolve_target(target), resolve_dtype(dtype), resolve_device(device), trust_remote_code)
    if measure:
        report_share(inputs, here, is_on(thinking))
        return after_measuring(inputs, target)
    if out is None:
        raise UserError("--out is missing; name the JSONL to write, or give --measure to measure the input as it is")
    check_out(inputs, out)
    chat = ChatFormat.load(here.folder, is_on(thinking), False, trust_remote_code)
    turns = Turns(chat, Sampling(max_new_tokens, temperatures, seed), max_length, Drop(drop_cut, drop_shorter, tuple(script or ())))
    wanted = Engine(engine.value, servers, in_flight, check, batch_size, engine_python, server_args, llamacpp, gpus_per_server)
    with open_answering(turns, wanted, here, out) as answering:
        counts = run(inputs, out, answering, Wanted(limit, answers_per_prompt, last_turn_only, Languages(language or [])))
    counts.report(out)
    if check:
        report_share([str(out)], here, is_on(thinking))
    after_regenerating(out, target, counts, [] if thinking is None else [f"dataset.thinking={str(is_on(thinking)).lower()}"])
