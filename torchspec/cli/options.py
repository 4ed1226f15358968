"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[str, typer.Option("--config", "-c", help="YAML recipe; see configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed.")]
Target = Annotated[str, typer.Option("--target", "-t", help="Folder of the target model, or its hub id.")]
Draft = Annotated[Path, typer.Option("--draft", "-d", help="Draft, exported or of another project: folder or hub id.")]
DraftTokens = Annotated[
    int | None,
    typer.Option(
        "--draft-tokens", metavar="K", help="Proposed per step. Default: as many as the draft was trained for.", min=1, show_default=False
    ),
]


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
Language = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE", help="Leave out what is clearly in another language, such as en; several are wanted together.", show_default=False
    ),
]
EnginePython = Annotated[
    str | None, typer.Option(help="Python of the environment that holds the engine. Default: this one.", show_default=False)
]
ServerArgs = Annotated[str, typer.Option(help="Further arguments of the started servers, in quotes.", show_default=False)]
LlamaCppFolder = Annotated[
    str | None,
    typer.Option(
        "--llamacpp", metavar="FOLDER", help="A llama.cpp: its converter, and its llama-server.", envvar="LLAMACPP", show_default=False
    ),
]
