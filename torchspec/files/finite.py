"""Weights are numbers: NaN and infinity are refused where tensors are read and before they are saved."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from torchspec.errors import ContractError

PART = 1 << 24  # values at a time: on a CPU the sum of bfloat16 in float32 is that of a copy


def check_finite(tensors: Mapping[str, Tensor], where: Path | str, fix: str) -> None:
    """One pass over each tensor; the first ones that are no numbers are named, with where they lie and what to do."""
    broken = [name for name, value in tensors.items() if not is_finite(value)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ContractError(f"{where}: NaN or infinity in {', '.join(broken[:3])}{more}; {fix}")


def is_finite(value: Tensor) -> bool:
    """Of a sharded tensor the part that is here."""
    if not value.is_floating_point():
        return True
    value = value.to_local() if isinstance(value, DTensor) else value
    value = value.float() if value.element_size() == 1 else value  # float8 knows no sums
    return all(_part_is_finite(part) for part in value.reshape(-1).split(PART))


def _part_is_finite(part: Tensor) -> bool:
    """A sum reads each value once; one that overflows may still be of numbers."""
    return bool(torch.isfinite(part.sum(dtype=torch.float32))) or bool(torch.isfinite(part).all())
