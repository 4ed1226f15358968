"""Tensors that say they are on a GPU and hold their values on the CPU: the code that a GPU runs, run here, with its results.

What a GPU would refuse is refused, and what would make the CPU wait for it is counted: by operation and by the function of torchspec
that asked for it.
"""

import sys
from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES, INDEXING = {aten._to_copy, aten.copy_}, {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
READS = {aten._local_scalar_dense, aten.equal}  # their result is a Python number
SIZES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive}  # their values decide a shape


class Pretended(Tensor):
    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, device=DEVICE)

    def __init__(self, held: Tensor):
        self.held = held

    def tolist(self) -> list:  # torch has it for its own tensors alone
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} on a pretended tensor outside of its device")


class PretendedDevice(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.syncs = Counter()  # "operation in function" -> times

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not torch.is_inference_mode_enabled():
            return self.run(func, args, kwargs)
        if func._can_decompose():  # elsewhere autograd has taken compound operations apart
            with self:
                return func.decompose(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():  # torch takes no inference tensor of another class
            return self.run(func, args, kwargs)

    def run(self, func, args, kwargs):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        device = torch.device(kwargs.pop("device", None) or (DEVICE if any(map(pretended, tensors)) else "cpu"))
        if "device" in {argument.name for argument in func._schema.arguments}:
            kwargs["device"] = torch.device("cpu")
        if device.type == "cpu" and not any(map(pretended, tensors)):
            return func(*args, **kwargs)
        self.check(func.overloadpacket, args, kwargs, tensors, device)
        result = self.compute(func, args, kwargs)
        if func.overloadpacket in READS or func._schema.is_mutable or device.type == "cpu":
            return result
        return tree_map_only(Tensor, Pretended, result)

    def compute(self, func, args, kwargs):
        """On the values. What an operation wrote into is returned as the tensor that came in."""
        owners = {id(x.held): x for x in tree_leaves((args, kwargs)) if pretended(x)}
        args, kwargs = tree_map_only(Pretended, lambda x: x.held, (args, kwargs))
        return tree_map_only(Tensor, lambda x: owners.get(id(x), x), func(*args, **kwargs))

    def check(self, operation, args, kwargs, tensors: list[Tensor], device: torch.device) -> None:
        """Refuses a mix of devices, counts a wait."""
        if operation in COPIES:
            source, arrives = (args[1], pretended(args[0])) if operation is aten.copy_ else (args[0], device == DEVICE)
            freely = kwargs.get("non_blocking") and (not arrives or hasattr(source, "pinned"))
            if arrives != pretended(source) and not freely:
                self.count("copy to the device" if arrives else "copy to the host")
            return
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)] if operation in INDEXING else []
        others = [x for x in tensors if not any(x is index for index in indices)]
        if any(x.dim() > 0 and not pretended(x) for x in others) or (indices and not pretended(args[0])):
            raise RuntimeError(f"{operation} in {asking()} mixes tensors of a GPU and of a CPU")
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            self.count("bool index")
        if not all(map(pretended, indices)):
            self.count("index from the host")
        if operation in READS:
            self.count("read of a number")
        if operation in SIZES or (operation is aten.repeat_interleave and kwargs.get("output_size") is None):
            self.count(operation.__name__)

    def count(self, operation: str) -> None:
        self.syncs[f"{operation} in {asking()}"] += 1


def pretended(x) -> bool:
    return isinstance(x, Pretended)


def asking() -> str:
    """The innermost function of torchspec on the stack."""
    frame = sys._getframe()
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("torchspec."):
        frame = frame.f_back
    return "none" if frame is None else frame.f_code.co_qualname


def on_host(x: Tensor) -> Tensor:
    """The values, for a comparison; nobody waits."""
    return (x.held if pretended(x) else x).detach()
