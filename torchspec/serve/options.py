"""How servers are had, from what a user wrote; checked before anything is loaded."""

from dataclasses import dataclass

from torchspec.errors import UserError
from torchspec.export.llamacpp import LlamaCpp
from torchspec.extras import need
from torchspec.training.config import EvaluationConfig


@dataclass(frozen=True)
class Serving:
    engine: str
    url: str | None = None  # of a running server with the draft; none starts one
    plain_url: str | None = None  # of a running server without it
    python: str | None = None  # interpreter of the environment that holds the engine; none: this one
    arguments: str = ""  # further ones of the started servers, as in a shell
    llamacpp: str | None = None  # folder of the llama.cpp that converts and serves


def training_serving(evaluation: EvaluationConfig) -> Serving:
    """Of a run that serves its checkpoints."""
    serving = Serving(evaluation.served, None, None, evaluation.served_python, evaluation.served_args)
    _check_installed(serving, f"evaluation.served={evaluation.served}", "evaluation.served_python")
    return serving


def serving_options(
    engine: str,
    concurrency: str,
    url: str | None,
    plain_url: str | None,
    python: str | None,
    arguments: str,
    llamacpp: str | None,
) -> tuple[Serving, tuple[int, ...]]:
    """Of `torchspec eval`; also the concurrencies, ascending."""
    words = concurrency.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--concurrency {concurrency!r} must be whole numbers from 1 on, several with commas, as in 1,8,32")
    if (url is None) != (plain_url is None):
        raise UserError("--url and --plain-url go together: a server with the draft and one without; leave both out to have them started")
    serving = Serving(engine, url, plain_url, python, arguments, llamacpp)
    _check_installed(serving, f"--mode {engine}", "--engine-python")
    return serving, tuple(sorted(set(map(int, words))))


def target_serving(engine: str, python: str | None, arguments: str, llamacpp: str | None) -> Serving:
    """Of a target that is started alone."""
    serving = Serving(engine, python=python, arguments=arguments, llamacpp=llamacpp)
    _check_installed(serving, f"--engine {engine}", "--engine-python")
    return serving


def check_client(asked_by: str) -> None:
    """Of servers that run already, only what asks them is needed here."""
    need(asked_by, "serve")


def _check_installed(serving: Serving, asked_by: str, other_python: str) -> None:
    check_client(asked_by)
    if serving.engine == "llamacpp":
        _check_llamacpp(serving)
    elif serving.url is None and serving.python is None:
        need(asked_by, serving.engine, f", or name the Python of its environment with {other_python}")


def _check_llamacpp(serving: Serving) -> None:
    """Not a package: a folder, which a server of somebody else does not need."""
    if serving.url is None:
        _ = LlamaCpp.at(serving.llamacpp).server
