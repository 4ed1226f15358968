"""The store between workers and ranks."""

from typing import Literal

from pydantic import Field, PositiveFloat

from torchspec.section import Section

SYSTEM_LIBRARIES = ", and from the system libibverbs1, librdmacm1 and libnuma1"  # that Mooncake is linked to


class MooncakeConfig(Section):
    master: str | None = Field(None, description="host:port of a running mooncake_master; none starts one for the run")
    protocol: Literal["tcp", "rdma"] = "tcp"
    rdma_device: str = Field("", description="comma-separated; empty lets Mooncake choose")
    segment_gib: PositiveFloat = Field(4.0, strict=False, description="memory of each worker and of each rank for features under way")
