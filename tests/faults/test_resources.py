"""What a cluster lacks is said before anything waits for it forever. Two nodes of four GPUs and five cores each, of real Ray's; it takes
our word for the numbers."""

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group, placement_group_table, remove_placement_group

from tests.tiny import recipe
from torchspec.config import RunConfig, load_config
from torchspec.errors import UserError
from torchspec.launch import places
from torchspec.launch.ray import check_resources

NODE = {"num_gpus": 4, "num_cpus": 5}


@pytest.fixture(scope="module")
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def run(tmp_path):
    file = recipe(tmp_path / "run.yaml", tmp_path, tmp_path / "train.jsonl", tmp_path / "heldout.jsonl")

    def config(ranks: int, workers: int, per_worker: int) -> RunConfig:
        sizes = (f"training.num_ranks={ranks}", f"inference.num_workers={workers}", f"inference.gpus_per_worker={per_worker}")
        return load_config(str(file), [*sizes])

    return config


@pytest.mark.parametrize(
    ("sizes", "missing"), [((3, 2, 3), "need 9 GPUs, the cluster has 8"), ((3, 2, 1), "need 11 CPUs, the cluster has 10")]
)
def test_devices_and_cores_that_are_missing_are_named(two_nodes, run, sizes, missing):
    with pytest.raises(UserError, match=missing):
        check_resources(run(*sizes), on_gpu=True)


def test_workers_take_their_places_before_the_ranks_and_what_is_taken_is_refused(two_nodes, run, monkeypatch):
    """Behind two packed ranks only one node can hold a worker of three GPUs."""
    config = run(2, 2, 3)
    check_resources(config, on_gpu=True)
    group = places.take_places(config, on_gpu=True)
    assert len(set(placement_group_table(group)["bundles_to_node_id"].values())) == 2
    ranks = packed(2, "PACK")
    assert ranks.wait(30)
    for taken in (group, ranks):
        remove_placement_group(taken)
    ranks = packed(2, "STRICT_PACK")  # what is removed goes in its own time, and PACK alone would take what it finds
    assert ranks.wait(30)
    monkeypatch.setattr(places, "PATIENCE", 1.0)
    with pytest.raises(UserError, match="inference.num_workers=2: .* no 3 GPUs and 4 CPUs free for each of them; wait for the jobs"):
        places.take_places(config, on_gpu=True)
    remove_placement_group(ranks)


def packed(ranks: int, strategy: str):
    """As Ray Train places them, by PACK."""
    return placement_group([places.rank_share(on_gpu=True)] * ranks, strategy=strategy)
