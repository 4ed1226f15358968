"""A converted file, read back: what llama.cpp will load is what was exported."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from torch import Tensor

from torchspec.errors import ContractError

TARGET_MAP, IN_VOCABULARY = "d2t", "t2d"  # llama.cpp writes the first as target ids, and leaves the second out
FACTORS = "rope_freqs.weight"  # of a scaled rotation, which no exported tensor holds


def check_draft(file: Path, facts: dict[str, object], tensors: dict[str, Tensor] | None) -> None:
    """facts: key of the file -> value. tensors: of the exported folder, where it is ours."""
    read = GGUFReader(file)
    check_facts(file, read, facts)
    if tensors is not None:
        _check_tensors(file, read, tensors)


def _check_tensors(file: Path, read: GGUFReader, tensors: dict[str, Tensor]) -> None:
    """Names and the order of rows are the converter's own."""
    written = {tensor.name: tensor for tensor in read.tensors if tensor.name != FACTORS}
    if TARGET_MAP in tensors:
        ids = torch.from_numpy(np.array(written.pop(TARGET_MAP).data))
        if not torch.equal(ids, tensors[TARGET_MAP] + torch.arange(len(ids))):
            raise ContractError(f"{file}: its map of the draft's vocabulary is not the export's; another llama.cpp may write it")
    weights = [_prints(value) for name, value in tensors.items() if name not in (TARGET_MAP, IN_VOCABULARY)]
    found = [_prints(_values(tensor)) for tensor in written.values()]
    lost, new = Counter(weights) - Counter(found), Counter(found) - Counter(weights)
    if lost or new:
        raise ContractError(
            f"{file}: {lost.total()} of {len(weights)} exported tensors are not in it with their values, and {new.total()} of its own are "
            "new; this llama.cpp converts them otherwise, try another release"
        )


def check_target(file: Path, layers: int, width: int) -> None:
    read = GGUFReader(file)
    name = read.fields["general.architecture"].contents()
    check_facts(file, read, {f"{name}.block_count": layers, f"{name}.embedding_length": width})


def check_facts(file: Path, read: GGUFReader, facts: dict[str, object]) -> None:
    for key, expected in facts.items():
        found = read.fields[key].contents() if key in read.fields else None
        same = found is not None and (np.float32(found) == np.float32(expected) if isinstance(expected, float) else found == expected)
        if not same:
            raise ContractError(f"{file} says {key}={found} where the draft has {expected}; llama.cpp would serve another draft")


def _prints(values: Tensor) -> tuple[tuple[int, ...], int, int]:
    """Shape, and sums over the bits of float32 values that no other order and hardly another value has."""
    bits = values.float().contiguous().view(torch.int32).long().flatten()
    return tuple(values.shape), int(bits.sum()), int((bits * bits).sum())


def _values(tensor: ReaderTensor) -> Tensor:
    """A file's axes run the other way round."""
    shape = [int(size) for size in reversed(tensor.shape)]
    if tensor.tensor_type == GGMLQuantizationType.BF16:
        return torch.from_numpy(np.array(tensor.data)).view(torch.bfloat16).reshape(shape)
    return torch.from_numpy(np.array(tensor.data)).reshape(shape)
