"""The same command anywhere: in this process, as a rank that torchrun has started, or on a cluster where Ray places the parts."""

import os

from torchspec.config import RunConfig
from torchspec.launch.needs import check_needs
from torchspec.launch.servers import supply
from torchspec.training.loop import Serve, train


def launch(config: RunConfig, serve: Serve | None = None) -> None:
    """Trains to the last step. serve: what is done with every checkpoint beside keeping it."""
    check_needs(config)
    is_rank = "WORLD_SIZE" in os.environ
    if config.inference.num_workers == 0 and (is_rank or not config.distributed):
        train(config, supply(config), serve)
        return
    from torchspec.launch.ray import from_workers, train_on_cluster  # Ray is an extra

    if is_rank:
        train(config, from_workers, serve)
    else:
        train_on_cluster(config, serve)
