"""Every command. Parses, then imports what it needs: `--help` answers in under half a second and loads no torch."""

import os
import signal
import sys

import typer

from torchspec.cli import draft, run, text
from torchspec.errors import Stopped, UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train the drafts of speculative decoding, and prove that they work.",
)
COMMANDS = {  # in the order of --help
    "prepare": text.prepare,
    "regenerate": text.regenerate,
    "train": run.train,
    "plan": run.plan,
    "doctor": run.doctor,
    "eval": draft.evaluate,
    "calibrate": draft.calibrate,
    "compare": draft.compare,
    "generate": draft.generate,
    "export": draft.export,
    "demo": run.demo,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _stop(_number, _frame) -> None:
    raise Stopped


def main() -> None:
    """What a user can mend is one sentence and exit code 2, what a user stopped one and 130; anything else is a bug and keeps its
    traceback."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a log holds no bars, of libraries and of servers neither
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
