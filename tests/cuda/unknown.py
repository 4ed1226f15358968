"""A pretended device whose floats are shapes without values: a step of an 8B target's draft fits a laptop, and what is alive is counted.

Integers and booleans keep their values, since lengths, anchors and masks decide shapes, unless they follow from floats.
"""

import weakref

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.cuda.pretended import INDEXING, READS, PretendedDevice, aten, pretended

ALLOCATION = 512  # bytes, of which torch's allocator hands out multiples
EMPTY = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


class DeviceWithoutFloats(PretendedDevice):
    def __init__(self):
        super().__init__()
        self.live, self.peak, self.counted = 0, 0, set()

    def compute(self, func, args, kwargs):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not any(pretended(x) and x.held.is_meta for x in tensors):
            result = super().compute(func, args, kwargs)
            forgets = func.overloadpacket in EMPTY
            result = tree_map_only(Tensor, lambda x: x if pretended(x) or not (forgets or x.is_floating_point()) else shape_of(x), result)
        elif func.overloadpacket in READS:
            return False  # no NaN in a norm
        else:
            result = self.without_values(func, args, kwargs)
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.count_storage((x.held if pretended(x) else x).untyped_storage())
        return result

    def without_values(self, func, args, kwargs):
        if func.overloadpacket in INDEXING:
            args = (args[0], [place for index in args[1] for place in places(index)], *args[2:])
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        came_in = {}  # id of a shape -> the tensor that it stands for

        def shape(x: Tensor) -> Tensor:
            held = x.held if pretended(x) else x
            held = held if held.is_meta else shape_of(held)
            came_in[id(held)] = x
            return held

        def written(held: Tensor) -> Tensor:
            """A tensor that came in and was written into has lost its values, too."""
            if id(held) not in came_in:
                return held
            came_in[id(held)].held = held
            return came_in[id(held)]

        args, kwargs = tree_map_only(Tensor, shape, (args, kwargs))
        return tree_map_only(Tensor, written, func(*args, **kwargs))

    def count_storage(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // ALLOCATION) * ALLOCATION
        if key in self.counted:
            return
        self.counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.freed, key, size)

    def freed(self, key: int, size: int) -> None:
        self.counted.remove(key)
        self.live -= size


def shape_of(x: Tensor) -> Tensor:
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")


def places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask whose values are known, as the indices that it stands for."""
    mask = pretended(index) and index.dtype == torch.bool and not index.held.is_meta
    return index.held.nonzero().unbind(1) if mask else (index,)
