"""What a cluster cannot hold is refused, and what it can hold is not. Oracle: every way to place a few workers and ranks, tried out."""

import itertools

import pytest

from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.launch.placement import RANK_CPUS, WORKER_CPUS, check_nodes


def run(ranks: int, workers: int, per_worker: int) -> RunConfig:
    return RunConfig(
        output_dir="run", model={"target_model_path": "target"}, dataset={"train_data_path": "text"}, training={"num_ranks": ranks},
        inference={"num_workers": workers, "gpus_per_worker": per_worker},
    )  # fmt: skip


def refused(config: RunConfig, nodes: list[tuple[int, int]]) -> bool:
    try:
        check_nodes(config, [{"GPU": gpus, "CPU": cpus} if gpus else {"CPU": cpus} for gpus, cpus in nodes])
    except UserError:
        return True
    return False


def placeable(ranks: int, workers: int, per_worker: int, nodes: list[tuple[int, int]]) -> bool:
    for places in itertools.product(range(len(nodes)), repeat=workers):
        left = [[gpus - places.count(i) * per_worker, cpus - places.count(i) * WORKER_CPUS] for i, (gpus, cpus) in enumerate(nodes)]
        if min(map(min, left)) >= 0 and sum(min(gpus, cpus // RANK_CPUS) for gpus, cpus in left) >= ranks:
            return True
    return False


@pytest.mark.parametrize("nodes", [[(8, 64)], [(4, 32), (4, 32)], [(3, 32), (3, 32), (2, 32)], [(8, 64), (0, 16)]], ids=str)
def test_every_small_run_is_refused_exactly_where_no_placement_exists(nodes):
    for ranks, workers, per_worker in itertools.product((1, 2, 4), (1, 2, 3), (1, 2, 3, 4, 5)):
        assert refused(run(ranks, workers, per_worker), nodes) is not placeable(ranks, workers, per_worker, nodes)


def test_a_worker_that_no_node_can_hold_is_named_with_the_nodes():
    with pytest.raises(UserError, match="worker.s 8 GPUs and 4 CPUs stand on one node, and nodes of 6 GPUs with 32 CPUs, 6 GPUs with "):
        check_nodes(run(1, 1, 8), [{"GPU": 6, "CPU": 32}, {"GPU": 6, "CPU": 32}])
