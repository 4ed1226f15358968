"""What a cluster lacks is said before anything waits for it forever."""

import pytest
import ray

from tests.tiny import recipe
from torchspec.config import load_config
from torchspec.errors import UserError
from torchspec.launch.ray import check_resources


@pytest.mark.parametrize(("gpus", "cpus", "missing"), [(2, 8, "need 3 GPUs, the cluster has 2"), (3, 8, "need 9 CPUs, the cluster has 8")])
def test_devices_and_cores_that_are_missing_are_named(tmp_path, gpus, cpus, missing):
    """Two workers with four cores each and a rank with one; Ray takes our word for the number of devices."""
    file = recipe(tmp_path / "run.yaml", tmp_path, tmp_path / "train.jsonl", tmp_path / "heldout.jsonl")
    config = load_config(str(file), ["inference.num_workers=2"])
    ray.init(num_gpus=gpus, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(UserError, match=missing):
            check_resources(config, on_gpu=True)
    finally:
        ray.shutdown()
