"""What a cluster lacks is said before anything waits for it forever."""

import pytest
import ray

from tests.tiny import recipe
from torchspec.config import load_config
from torchspec.errors import UserError
from torchspec.launch.ray import check_resources


def test_devices_and_cores_that_are_missing_are_named(tmp_path):
    """A worker takes four cores and a rank one; Ray takes our word for the number of devices."""
    file = recipe(tmp_path / "run.yaml", tmp_path, tmp_path / "train.jsonl", tmp_path / "heldout.jsonl")
    ray.init(num_gpus=2, num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        for workers, missing in ((2, "need 3 GPUs, the cluster has 2"), (1, "need 5 CPUs, the cluster has 4")):
            with pytest.raises(UserError, match=missing):
                check_resources(load_config(str(file), [f"inference.num_workers={workers}"]), on_gpu=True)
    finally:
        ray.shutdown()
