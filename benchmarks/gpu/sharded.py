"""FSDP2 with a single rank: its gathering, casting and reducing against the plain wrapper of one device."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from gpu.place import Place, relative, within
from gpu.steps import SMALL, TINY, new
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from train_step import Ours

from torchspec.training.distributed import whole
from torchspec.training.optim import build_optimizers

STEPS = 3


def one_rank(place: Place) -> dict:
    for library in ("NCCL", "GLOO"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")  # a machine without a network has no other
    store = dist.FileStore(str(place.scratch / "ranks"), 1)
    dist.init_process_group("nccl" if place.cuda else "gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    try:
        return _compared(place)
    finally:
        dist.destroy_process_group()


def _compared(place: Place) -> dict:
    shape = place.pick(SMALL, TINY)
    plain, sharded = new(place, shape, "dflash"), new(place, shape, "dflash")
    shard(sharded)
    errors = []
    for seed in range(STEPS):
        for ours in (plain, sharded):
            ours.gradients(seed)
        pairs = zip(plain.run.model.parameters(), sharded.run.model.parameters(), strict=True)
        errors.append(max(relative(whole(b.grad), a.grad) for a, b in pairs))
        for ours in (plain, sharded):
            ours.update()
    # the first differ by the order in which bfloat16 gradients of the context are added up, the later ones by Adam's answer to that as well
    return {"ok": errors[0] <= 1e-2 and within(errors, 5e-2), "gradient_errors": errors, "bitwise": max(errors) == 0.0}


def shard(ours: Ours) -> None:
    """What `parallelise` does for several ranks; a world of one does not get there."""
    model, mesh = ours.run.model, init_device_mesh(ours.device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    ours.run.compute = fully_shard(model, mesh=mesh, mp_policy=policy)
    ours.run.optimizers = build_optimizers(model, ours.run.config.training)
