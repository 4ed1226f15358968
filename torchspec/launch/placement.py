"""Whether a cluster's nodes can hold a run: a worker is one actor, so all of its devices stand on one node; ranks take what is left.

Said before anything is loaded: Ray itself would wait forever for what no node has.
"""

from torchspec.config import RunConfig
from torchspec.errors import UserError

RANK_CPUS, WORKER_CPUS = 1, 4  # on GPUs, and so many OpenMP threads by Ray. A worker's engine has processes of its own, and two requests


def check_nodes(config: RunConfig, nodes: list[dict[str, float]]) -> None:
    """nodes: each node's resources by Ray's names, all of them, used or free."""
    ranks, workers, per_worker = config.training.num_ranks, config.inference.num_workers, config.inference.gpus_per_worker
    for kind, wanted in {"GPU": ranks + workers * per_worker, "CPU": ranks * RANK_CPUS + workers * WORKER_CPUS}.items():
        there = sum(node.get(kind, 0) for node in nodes)
        if wanted > there:
            raise UserError(
                f"training.num_ranks={ranks} and inference.num_workers={workers} x gpus_per_worker={per_worker} need {wanted} {kind}s, "
                f"the cluster has {there:g}; lower one of them"
            )
    held = sum(int(min(node.get("GPU", 0) // per_worker, node.get("CPU", 0) // WORKER_CPUS)) for node in nodes)
    if workers > held:
        sizes = ", ".join(f"{node.get('GPU', 0):g} GPUs with {node.get('CPU', 0):g} CPUs" for node in nodes)
        raise UserError(
            f"inference.num_workers={workers}: a worker's {per_worker} GPUs and {WORKER_CPUS} CPUs stand on one node, and nodes of {sizes} "
            f"hold {held} of them; lower num_workers or gpus_per_worker, or start servers over several nodes and name them in "
            "inference.server_url"
        )
