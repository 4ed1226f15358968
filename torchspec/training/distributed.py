"""The ranks of a training run, and the draft sharded over them with FSDP2. One rank is a run without any process group.

The loop does not know who launched it: a plain process, `torchrun`, or Ray Train, which has the process group ready.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from torchspec.errors import UserError
from torchspec.nn.precision import ComputeIn, recomputed
from torchspec.training.config import TrainingConfig


@dataclass(frozen=True)
class World:
    """This rank among all ranks of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks; in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def most(self, value: int) -> int:
        """The largest over all ranks. It travels between processors: no GPU is waited for."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world that the launcher's environment describes; a process group that was made here ends here."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if ours:
            dist.destroy_process_group()


def mesh(world: World, strategy: str) -> DeviceMesh:
    """FULL_SHARD: over all ranks. HYBRID: sharded inside a node, replicated across nodes. REPLICATE: whole on every rank."""
    if strategy == "FULL_SHARD":
        return init_device_mesh(world.device.type, (world.size,))
    inside = int(os.environ["LOCAL_WORLD_SIZE"]) if strategy == "HYBRID" else 1
    if world.size % inside:
        raise UserError(f"training.fsdp_strategy=HYBRID: {world.size} ranks do not divide into nodes of {inside}; use FULL_SHARD")
    return init_device_mesh(world.device.type, (world.size // inside, inside), mesh_dim_names=("replicate", "shard"))


def parallelise(model: nn.Module, world: World, training: TrainingConfig, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The draft as the loop calls it: float32 masters, computing in `dtype`, gradients reduced in float32.

    Several ranks: FSDP2, a unit per layer and one for the rest; a draft of one layer is one unit, since EAGLE-3 runs its layer once a
    step and would gather it each time. One rank: the same arithmetic without FSDP.
    """
    for layer in model.layers:
        if compiles(training, world.device):
            layer.forward = compiled(layer.forward)
        if training.activation_checkpointing:
            layer.forward = recomputed(layer)
    if world.size == 1:
        return ComputeIn(model, dtype)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    ranks = mesh(world, training.fsdp_strategy)
    for layer in model.layers if len(model.layers) > 1 else ():
        fully_shard(layer, mesh=ranks, mp_policy=policy)
    return fully_shard(model, mesh=ranks, mp_policy=policy)


def compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Lengths are symbols from the first batch on: what a step computes does not depend on which batch a process saw first, so that a
    resumed run is the run that was never killed. The epsilon of a norm is none.
    """
    torch._dynamo.config.specialize_float = True
    return torch.compile(forward, dynamic=True)


def compiles(training: TrainingConfig, device: torch.device) -> bool:
    return device.type == "cuda" if training.compile is None else training.compile


def sync_gradients(compute: Callable, wanted: bool) -> None:
    """Gradients travel on the last micro-batch of an optimizer step only; until then each rank adds up its own."""
    if not isinstance(compute, ComputeIn):
        compute.set_requires_gradient_sync(wanted)


def whole(value: Tensor) -> Tensor:
    """A sharded tensor gathered on every rank; a plain one as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def load_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Whole tensors into the parameters of these names, of a model that may be sharded; every rank calls it with the same weights."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameter = parameters[name]
        value = value.to(parameter.device, parameter.dtype)
        parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else value)
