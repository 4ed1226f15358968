"""The capture workers' places in a cluster, taken before the ranks': a placement group with a bundle for each worker, and no bundle is
spread over nodes.

    two nodes of 4 GPUs, two workers of 3, two ranks          ranks first        workers first
                                                      node a  r r . .            w w w r
                                                      node b  w w w .            w w w r
    Ray Train packs its ranks. Behind them the second worker would wait forever.
"""

from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.launch.placement import RANK_CPUS, WORKER_CPUS

PATIENCE = 60.0  # seconds until what other jobs hold counts as taken


def rank_share(on_gpu: bool) -> dict[str, float]:
    """What a rank takes, by Ray's names. Without GPUs several share a core: the demand is then a matter of taste, not of placement."""
    return {"GPU": 1, "CPU": RANK_CPUS} if on_gpu else {"CPU": 0.01}


def worker_share(config: RunConfig, on_gpu: bool) -> dict[str, float]:
    return {"GPU": config.inference.gpus_per_worker, "CPU": WORKER_CPUS} if on_gpu else {"CPU": 0.01}


def take_places(config: RunConfig, on_gpu: bool) -> PlacementGroup | None:
    """Bundle i is worker i's, until the job ends; none where there are no workers."""
    workers = config.inference.num_workers
    if not workers:
        return None
    group = placement_group([worker_share(config, on_gpu)] * workers, strategy="PACK")
    if not group.wait(PATIENCE):
        remove_placement_group(group)
        each = f"{config.inference.gpus_per_worker} GPUs and {WORKER_CPUS} CPUs"
        raise UserError(
            f"inference.num_workers={workers}: for {PATIENCE:.0f} seconds the cluster had no {each} free for each of them; wait for the "
            "jobs that hold them, or lower num_workers or gpus_per_worker"
        )
    return group
