"""An H100 that is not there: torch and Triton ask about it and get the answers of a real one, so that Dynamo, Inductor and ptxas do
for it what they would do for one. Nothing is ever computed by it: no result and no time comes from here.
"""

from types import SimpleNamespace

import torch
import triton
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget

TARGET = GPUTarget("cuda", 90, 32)  # compute capability, threads of a warp
SHARED_MEMORY = 227 * 1024  # bytes that one program may ask for
MEMORY = int(79.6 * 2**30)  # bytes that a process can allocate on the card of 80 GB

PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", gcnArchName="sm_90", major=9, minor=0, uuid="none", total_memory=MEMORY, multi_processor_count=132,
    L2_cache_size=50 * 2**20, regs_per_multiprocessor=65536, shared_memory_per_multiprocessor=228 * 1024, warp_size=32,
    shared_memory_per_block_optin=SHARED_MEMORY, max_threads_per_block=1024, max_threads_per_multi_processor=2048,
)  # fmt: skip

ANSWERS = {
    torch.cuda: {
        "is_available": True, "is_initialized": True, "_is_compiled": True, "is_bf16_supported": True, "_lazy_init": None,
        "device_count": 1, "current_device": 0, "_exchange_device": 0, "_maybe_exchange_device": 0, "synchronize": None,
        "_get_device_properties": PROPERTIES, "get_device_capability": (9, 0), "get_device_name": PROPERTIES.name,
        "is_current_stream_capturing": False, "current_stream": SimpleNamespace(cuda_stream=0), "set_stream": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None,
    },
    torch._C: {
        "_cuda_getDevice": 0, "_cuda_setDevice": None, "_cuda_exchangeDevice": 0, "_cuda_maybeExchangeDevice": 0,
        "_cuda_getDeviceCount": 1, "_cuda_getCurrentRawStream": 0, "_cuda_isCurrentStreamCapturing": False,
    },
}  # fmt: skip


class Driver:
    """Triton's view of the card: its target and its limits. A compiled kernel is loaded nowhere."""

    def __init__(self):
        limits = {"max_shared_mem": SHARED_MEMORY, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}
        # a handle of module and function, registers, spills, most threads
        self.utils = SimpleNamespace(get_device_properties=lambda device: limits, load_binary=lambda *kernel: (None, None, 0, 0, 1024))
        self.launcher_cls = lambda *kernel: None

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self):
        return torch.cuda

    def get_benchmarker(self):
        return None


def pinned(x: torch.Tensor) -> torch.Tensor:
    """A copy that says so: from other memory of the host a GPU takes nothing without a wait."""
    copy = x.clone()
    copy.pinned = True
    return copy


def pretend() -> None:
    """For the whole process: the tests of this folder run by themselves."""
    for module, answers in ANSWERS.items():
        for name, answer in answers.items():
            setattr(module, name, lambda *args, answer=answer, **kwargs: answer)
    torch.version.cuda = "13.0"
    torch.Tensor.pin_memory = pinned
    backends["nvidia"] = Backend(backends["nvidia"].compiler, Driver)
    triton.runtime.driver.set_active(Driver())
