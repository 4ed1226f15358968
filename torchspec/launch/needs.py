"""The extras that a run needs here, known from its config alone: asked for before anything is loaded, by `--plan` and by `doctor`."""

import os
from dataclasses import dataclass

from torchspec.capture.registry import EXTRAS
from torchspec.config import RunConfig
from torchspec.errors import UserError
from torchspec.extras import lacking
from torchspec.training.trackers import asked_trackers
from torchspec.transfer.config import SYSTEM_LIBRARIES


@dataclass(frozen=True)
class Need:
    asked_by: str  # key of the config, with its value
    extra: str
    more: str = ""  # what else helps, or is needed

    @property
    def lacking(self) -> str | None:
        return lacking(self.asked_by, self.extra, self.more)


def needs(config: RunConfig) -> list[Need]:
    training, inference, served = config.training, config.inference, config.evaluation.served
    found = [Need(asked, extra) for asked, extra in asked_trackers(config).items()]
    if inference.num_workers > 0:
        found.append(Need(f"inference.num_workers={inference.num_workers}", "ray"))
    elif config.distributed and "WORLD_SIZE" not in os.environ:
        found.append(Need(f"training.num_ranks={training.num_ranks}", "ray", ", or start it with torchrun"))
    elsewhere = inference.num_workers > 0 and config.cluster.address is not None  # on nodes that this one may be unlike
    if inference.inference_engine_type in EXTRAS and not inference.servers and not elsewhere:
        found.append(Need(f"inference.inference_engine_type={inference.inference_engine_type}", inference.inference_engine_type))
    if inference.num_workers > 0 and inference.transfer == "mooncake" and not elsewhere:
        found.append(Need("inference.transfer=mooncake", "mooncake", SYSTEM_LIBRARIES))
    if served is not None:
        found.append(Need(f"evaluation.served={served}", "serve"))
    if served is not None and config.evaluation.served_python is None:
        found.append(Need(f"evaluation.served={served}", served, ", or name the Python of its environment with evaluation.served_python"))
    return found


def check_needs(config: RunConfig) -> None:
    missing = [need.lacking for need in needs(config) if need.lacking]
    if missing:
        raise UserError("; ".join(missing))
