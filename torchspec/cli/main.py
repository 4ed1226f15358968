"""Every command. Parses, then imports what it needs: `--help` answers in under half a second and loads no torch."""

import os
import sys
from typing import Annotated

import typer

from torchspec import __version__
from torchspec.capture.registry import engine_name
from torchspec.cli import draft, run, text
from torchspec.console import speak_anywhere
from torchspec.errors import Stopped, UserError
from torchspec.signals import hearing, stop

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": engine_name},
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


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"torchspec {__version__}")
        raise typer.Exit


@app.callback()
def torchspec(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Train the drafts of speculative decoding, and prove that they work."""


def main() -> None:
    """What a user can mend is one sentence and exit code 2, what a signal stopped one and 128 + its number (130 for Ctrl-C, 143 for
    SIGTERM); anything else is a bug and keeps its traceback."""
    speak_anywhere()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a log holds no bars, of libraries and of servers neither
    try:
        with hearing(stop):
            app()
    except Stopped as stopped:
        typer.echo(str(stopped) or "stopped; what was complete before is as it was", err=True)
        raise SystemExit(128 + stopped.number) from None
    except OSError as error:
        from torchspec.files.writing import of_the_disk

        if (sentence := of_the_disk(error, "a file")) is None:
            raise
        typer.echo(f"error: {sentence}", err=True)
        raise SystemExit(2) from None
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
