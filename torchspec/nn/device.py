"""The words of a config -> what torch calls them: number formats and devices."""

import torch

from torchspec.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def resolve_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported; choose {' or '.join(DTYPES)}")
    return DTYPES[name]


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts where a build lacks the backend
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether it is an x86 CPU without bfloat16 instructions, which converts every factor of a product to float32."""
    cpu = torch.cpu.get_capabilities()
    return device.type == "cpu" and cpu["architecture"] == "x86_64" and not (cpu["avx512_bf16"] or cpu["amx_bf16"])
