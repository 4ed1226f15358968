"""Every command. Parses, then imports what it needs: `--help` answers in under half a second and loads no torch."""

import os
import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from torchspec.errors import Stopped, UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train the drafts of speculative decoding, and prove that they work.",
)

Target = Annotated[str, typer.Option("--target", "-t", help="Folder of the target model, or its hub id.")]
Draft = Annotated[Path, typer.Option("--draft", "-d", help="Draft, exported or of another project: folder or hub id.")]
DraftTokens = Annotated[
    int | None,
    typer.Option(
        "--draft-tokens", metavar="K", help="Proposed per step. Default: as many as the draft was trained for.", min=1, show_default=False
    ),
]


class Mode(StrEnum):
    OFFLINE = "offline"
    DECODE = "decode"
    VLLM = "vllm"
    SGLANG = "sglang"


class Switch(StrEnum):
    ON = "on"
    OFF = "off"


def is_on(switch: Switch | None) -> bool | None:
    return None if switch is None else switch is Switch.ON


Thinking = Annotated[
    Switch | None, typer.Option("--thinking", help="Thinking mode of the chat template. Default: the template's own.", show_default=False)
]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of one answer.", min=1)]
Dtype = Annotated[str, typer.Option(help="bfloat16 or float32: what target and draft compute in.")]
Device = Annotated[str, typer.Option(help="auto takes CUDA when there is one.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the target.")]


@app.command()
def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Chats: .jsonl, .json (also .gz), .csv, .parquet, data sets as owner/name[:subset][:split], perfectblend."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; without --target the .jsonl to write.")],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Folder or hub id of the target. Without it, conversations are cleaned and stay text."),
    ] = None,
    thinking: Thinking = None,
    last_turn_only: Annotated[bool, typer.Option(help="Supervise only the last assistant turn.")] = False,
    max_length: Annotated[int | None, typer.Option(help="Cut samples to this many tokens.", min=2)] = None,
    min_loss_tokens: Annotated[int, typer.Option(help="Leave out samples with fewer supervised tokens.", min=1)] = 1,
    max_rejected: Annotated[float, typer.Option(help="Largest share of unusable rows before this stops.", min=0, max=1)] = 0.1,
    sample_size: Annotated[int | None, typer.Option(help="Without --target: draw this many of the usable rows.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of that draw.", min=0)] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes that encode. Default: one per core.", min=1, show_default=False)] = None,
    show: Annotated[int, typer.Option(help="Print this many samples, supervised tokens in colour.", min=0)] = 0,
    trust_remote_code: Trust = False,
) -> None:
    """Conversations -> token ids and loss mask, once, with a manifest of what was made of what; or -> clean conversations."""
    from torchspec.data.collect import check_arguments, collect
    from torchspec.data.encode import Options
    from torchspec.data.prepare import prepare as run
    from torchspec.data.show import show as show_samples
    from torchspec.fetch import resolve_target
    from torchspec.log import console
    from torchspec.writing import writing

    check_arguments(out, target, sample_size)
    with writing(out, "torchspec prepare", lambda: f"{out} is as it was before"):
        if target is None:
            return collect(inputs, out, sample_size, seed, max_rejected).report(console)
        options = Options(is_on(thinking), last_turn_only, max_length, min_loss_tokens, max_rejected, trust_remote_code)
        manifest = run(inputs, out, resolve_target(target), options, workers=workers)
    console.print(
        f"{out}: {manifest.samples} samples, {manifest.tokens:,} tokens, {manifest.mask_share:.0%} supervised, "
        f"{manifest.truncated} cut" + (f" to {manifest.max_length} tokens" if manifest.truncated else "")
    )
    for kind, reasons in (("rejected", manifest.rejected), ("filtered", manifest.filtered)):
        for reason, count in reasons.items():
            console.print(f"  {kind} {count}: {reason} (listed in {out / 'rejected.jsonl'})", markup=False)
    if show:
        show_samples(out, show, console)


@app.command()
def regenerate(
    inputs: Annotated[list[str], typer.Argument(help="Chats as `prepare` reads them; their assistant turns are written anew.")],
    target: Target,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSONL to write, or to go on with.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Write nothing: report the on-policy share of the input.")] = False,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.", min=0)] = 0.0,
    max_new_tokens: MaxNewTokens = 512,
    batch_size: Annotated[int, typer.Option(help="Conversations answered at a time.", min=1)] = 16,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the input.", min=1)] = None,
    seed: int = 0,
    thinking: Thinking = None,
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Let the target answer: the text a draft learns must be the text that is served. Safe to kill and start again."""
    from torchspec.data import regenerate as regeneration
    from torchspec.fetch import resolve_target
    from torchspec.inference import resolve_device, resolve_dtype

    folder, place = resolve_target(target), (resolve_dtype(dtype), resolve_device(device))
    if measure:
        return regeneration.report_share(inputs, folder, *place, is_on(thinking), trust_remote_code)
    if out is None:
        raise UserError("--out is missing; name the JSONL to write, or give --measure to measure the input as it is")
    sampling = regeneration.Sampling(max_new_tokens, temperature, seed)
    regenerator = regeneration.Regenerator.load(folder, sampling, *place, is_on(thinking), trust_remote_code)
    regeneration.report(regeneration.regenerate(inputs, out, regenerator, batch_size, limit), out)
    regeneration.report_share([str(out)], folder, *place, is_on(thinking), trust_remote_code)


@app.command()
def train(
    config: Annotated[str, typer.Option("--config", "-c", help="YAML recipe; see configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the resolved run - steps, batches, memory, disk - and stop.")] = False,
) -> None:
    """Train a draft. Started again with the same output_dir, it resumes from the latest checkpoint."""
    from torchspec.config import load_config

    run = load_config(config, overrides or [])
    if plan:
        from torchspec.print_plan import print_plan

        return print_plan(run)
    if run.distributed and "WORLD_SIZE" not in os.environ:  # torchrun has started the ranks already
        from torchspec.cluster import train_on_cluster as start
    else:
        from torchspec.train import train as start
    start(run)


@app.command()
def plan(
    config: Annotated[str, typer.Option("--config", "-c", help="YAML recipe; see configs/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one device for an hour, in any currency.", min=0, show_default=False)] = None,
) -> None:
    """Measure capture, training and evaluation on this machine for a minute: hours, memory, cost, and how devices are best split."""
    from torchspec.config import load_config
    from torchspec.measure_plan import measure_plan

    measure_plan(load_config(config, overrides or []), price)


@app.command()
def doctor(
    config: Annotated[str | None, typer.Option("--config", "-c", help="YAML recipe; without it, the installation alone.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.")] = None,
) -> None:
    """Check installation, devices, target, data and space, then rehearse the whole way on one sample. Exits with 1 on any red row."""
    from torchspec.config import load_config

    if config is None and overrides:
        raise UserError(f"override {overrides[0]!r} needs a recipe: add --config")
    run = None if config is None else load_config(config, overrides or [])
    from torchspec.doctor.run import run_doctor

    raise typer.Exit(0 if run_doctor(run) else 1)


@app.command(name="eval")
def evaluate(
    draft: Draft,
    target: Target,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json, report.html and its charts.")],
    draft_tokens: DraftTokens = None,
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
    mode: Annotated[
        Mode,
        typer.Option(
            help="offline: τ by one parallel pass; decode: every prompt is decoded here as well; vllm, sglang: every prompt is sent to "
            "that server, without and with the draft."
        ),
    ] = Mode.OFFLINE,
    decode: Annotated[
        int, typer.Option(help="In offline mode, prompts of each data set that are also decoded, plain and speculative.", min=0)
    ] = 8,
    batch_size: Annotated[int, typer.Option(help="Prompts decoded together here; rates are then those of the batch.", min=1)] = 1,
    max_new_tokens: MaxNewTokens = 128,
    limit: Annotated[int | None, typer.Option(help="Only the first samples of each data set.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="0 decodes greedily.", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn at a temperature.", min=0)] = 0,
    concurrency: Annotated[str, typer.Option(help="Prompts sent to a server at a time, one measurement each.")] = "1,8,32",
    url: Annotated[
        str | None, typer.Option(help="Running server with the draft. Default: servers are started here.", show_default=False)
    ] = None,
    plain_url: Annotated[str | None, typer.Option(help="Running server without the draft; goes with --url.", show_default=False)] = None,
    engine_python: Annotated[
        str | None, typer.Option(help="Python of the environment that holds the engine. Default: this one.", show_default=False)
    ] = None,
    server_args: Annotated[str, typer.Option(help="Further arguments of the started servers, in quotes.", show_default=False)] = "",
    thinking: Thinking = None,
    cache: Annotated[Path, typer.Option(help="Where the target's answers are kept.")] = Path("~/.cache/torchspec"),
    dtype: Dtype = "bfloat16",
    device: Device = "auto",
    trust_remote_code: Trust = False,
) -> None:
    """Acceptance length on what the target writes; decoding compared token by token with the plain one; real servers. Safe to kill."""
    if (data is None) == (datasets is None):
        raise UserError("give either --data (conversations that the target wrote) or --datasets (questions that it is to answer)")
    from torchspec.evaluate.answers import answered
    from torchspec.evaluate.questions import questions
    from torchspec.evaluate.run import Settings, evaluate_draft
    from torchspec.inference import load_pair

    asked = {name: questions(name, data_dir, limit) for name in datasets.split(",")} if datasets else {}
    decoded = {Mode.OFFLINE: decode, Mode.DECODE: None}.get(mode, 0)
    serving, concurrencies = None, ()
    if mode in (Mode.VLLM, Mode.SGLANG):
        from torchspec.serve.options import serving_options

        serving, concurrencies = serving_options(mode.value, concurrency, url, plain_url, engine_python, server_args)
    settings = Settings(decoded, max_new_tokens, limit, is_on(thinking), temperature, seed, serving, concurrencies, batch_size)
    pair = load_pair(draft, target, dtype, device, trust_remote_code, draft_tokens)
    sources = {Path(data).stem: data} if data else answered(pair, asked, settings, cache.expanduser(), out)
    evaluate_draft(pair, sources, out, settings)


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="results.json of two or more evaluations; differences are to the first.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for compare.html and compare_charts/.")],
) -> None:
    """Drafts side by side: a table, a page and pictures. Refuses evaluations that were not measured alike."""
    from torchspec.evaluate.compare import compare as run
    from torchspec.log import console

    console.print(f"Look at {run(results, out, console)}", markup=False)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
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
    from torchspec.evaluate.sampling import Sampler
    from torchspec.evaluate.stream_answer import stream_answer
    from torchspec.inference import load_pair

    pair = load_pair(draft, target, dtype, device, trust_remote_code, draft_tokens)
    stream_answer(pair, prompt, max_new_tokens, is_on(thinking), Sampler(temperature, seed, pair.target.device))


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="An iter_NNNNNNN folder, or a checkpoints folder (its best is taken).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; a name ending in .pt takes the bare tensors.")],
) -> None:
    """Write the folder that vLLM, SGLang, llama.cpp's converter and Transformers load, read it back and compare."""
    from torchspec.checkpoint import best
    from torchspec.export.hf import export_checkpoint
    from torchspec.export.pt import export_tensors
    from torchspec.log import console

    source = checkpoint if (checkpoint / "state.json").is_file() else best(checkpoint)
    (export_tensors if out.suffix == ".pt" else export_checkpoint)(source, out)
    console.print(f"{source} -> {out}, read back and equal")


@app.command()
def demo(out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("outputs")) -> None:
    """Give a small language model a draft, here and now: fetch, train, evaluate, export, report. About ten minutes on two cores."""
    from torchspec.demo.run import run_demo

    run_demo(out)


def _stop(_number, _frame) -> None:
    raise Stopped


def main() -> None:
    """What a user can mend is one sentence and exit code 2, what a user stopped one and 130; anything else is a bug and keeps its
    traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except Stopped as stop:
        typer.echo("".join(stop.args) or "stopped; what was complete before is as it was", err=True)
        raise SystemExit(130) from None
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
