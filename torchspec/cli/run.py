"""A run: trained, planned, examined beforehand, shown."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from torchspec.cli.options import Config, Overrides
from torchspec.console import command, print_rows
from torchspec.errors import UserError


def train(
    config: Config,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what the run will be - draft, steps, memory, disk - and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: all of it and the whole config, for programs.")] = False,
) -> None:
    """Train a draft. Started again with the same output_dir, it resumes from the latest checkpoint."""
    from torchspec.config import load_config

    run = load_config(config, overrides or [])
    if as_json and not plan:
        raise UserError("--json goes with --plan; a run's numbers are in its metrics.jsonl")
    if plan:
        from torchspec.launch.plan import print_plan

        print_plan(run, as_json)
        return None if as_json else _next("plan", config, overrides, "    # hours, measured here for a minute")
    from torchspec.cli.endings import after_training
    from torchspec.launch.run import launch
    from torchspec.serve.training import server_of

    launch(run, server_of(run.evaluation))
    if os.environ.get("RANK", "0") == "0":
        after_training(run)


def plan(
    config: Config,
    overrides: Overrides = None,
    price: Annotated[float | None, typer.Option(help="Of one device for an hour, in any currency.", min=0, show_default=False)] = None,
) -> None:
    """Measure capture, training and evaluation on this machine for a minute: hours, memory, cost, and how devices are best split."""
    from torchspec.config import load_config
    from torchspec.launch.measure import measure_plan

    measure_plan(load_config(config, overrides or []), price)
    _next("train", config, overrides)


def doctor(
    config: Annotated[str | None, typer.Option("--config", "-c", help="YAML recipe; without it, the installation alone.")] = None,
    overrides: Overrides = None,
) -> None:
    """Check installation, devices, target, data and space, then rehearse the whole way on one sample. Exits with 1 on any red row."""
    from torchspec.config import load_config

    if config is None and overrides:
        raise UserError(f"override {overrides[0]!r} needs a recipe: add --config")
    run = None if config is None else load_config(config, overrides or [])
    from torchspec.doctor.run import run_doctor

    sound = run_doctor(run)
    if sound and config is not None:
        _next("train", config, overrides)
    raise typer.Exit(0 if sound else 1)


def _next(name: str, config: str, overrides: list[str] | None, note: str = "") -> None:
    print_rows({"next": command("torchspec", name, "-c", config, *overrides or []) + note})


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path("outputs"),
    method: Annotated[Literal["eagle3", "dflash"], typer.Option(help="What is trained.")] = "eagle3",
) -> None:
    """Give a small language model a draft, here and now: fetch, train, evaluate, export, report. About nine minutes on two cores."""
    from torchspec.demo.run import run_demo

    run_demo(out, method)
