"""Which target, and how it computes."""

from typing import Literal

from pydantic import Field

from torchspec.section import Section


class ModelConfig(Section):
    target_model_path: str = Field(description="folder of the target, or a hub id")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="of the target, and of the draft's computation")
    device: str = Field("auto", description="auto takes CUDA when there is one")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the target")
