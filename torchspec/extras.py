"""Packages that only some runs need: the extra that brings them, and one sentence where they are missing."""

from importlib.util import find_spec

from torchspec.errors import UserError

PACKAGES = {  # extra -> what of it is imported
    "ray": ("ray",),
    "vllm": ("vllm",),
    "sglang": ("sglang",),
    "llamacpp": ("sentencepiece",),
    "serve": ("openai", "prometheus_client", "requests"),
    "mooncake": ("mooncake",),
    "language": ("py3langid",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "swanlab": ("swanlab",),
}


def lacking(asked_by: str, extra: str, more: str = "") -> str | None:
    """asked_by: the option or key, with its value. more: what else helps, as in ", or ...". None where everything is installed."""
    missing = [name for name in PACKAGES[extra] if find_spec(name) is None]
    return f"{asked_by} needs {', '.join(missing)}: {install(extra)}{more}" if missing else None


def install(extra: str) -> str:
    return f"pip install 'torchspec[{extra}]'"


def need(asked_by: str, extra: str, more: str = "") -> None:
    if sentence := lacking(asked_by, extra, more):
        raise UserError(sentence)
