"""The cluster that a run joins."""

from pydantic import Field, NonNegativeInt

from torchspec.section import Section


class ClusterConfig(Section):
    address: str | None = Field(None, description="Ray cluster to join, host:port or auto; none starts one on this machine")
    max_restarts: NonNegativeInt = Field(3, description="times that dead trainer ranks are started again from the latest checkpoint")
