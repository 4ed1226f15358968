"""Who runs the target, where, and what is kept of its features."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from torchspec.capture.registry import BACKENDS, engine_name
from torchspec.hints import did_you_mean
from torchspec.section import Section, Share
from torchspec.transfer.config import MooncakeConfig


def _known(word: str) -> str:
    name = engine_name(word)
    if name not in BACKENDS:
        raise ValueError(f"{word!r} is no engine, choose one of {', '.join(BACKENDS)}{did_you_mean(word, BACKENDS, ', ')}")
    return name


class InferenceConfig(Section):
    inference_engine_type: Annotated[str, AfterValidator(_known)] = Field("hf", description="who runs the target: hf, sglang or vllm")
    num_workers: NonNegativeInt = Field(0, description="capture workers, each with its own devices; 0 captures in the trainer's process")
    gpus_per_worker: PositiveInt = Field(1, description="GPUs of one capture worker: its tensor parallel size")
    memory_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of a device's memory that vLLM or SGLang takes; none: 0.9 of a worker's own GPU, else 0.4"
    )
    server_url: str | list[str] | None = Field(
        None, description="running SGLang or vLLM server, or a list of them, that capture in place of engines of the run's own"
    )
    transfer_dtype: Literal["model", "fp8"] = Field("model", description="fp8: e4m3 with a scale per token and layer, half the bytes")
    transfer: Literal["ray", "mooncake"] = Field("ray", description="how features get from workers to ranks")
    mooncake: MooncakeConfig = MooncakeConfig()
    replay_dir: str | None = Field(
        None, description="folder that keeps features on disk for later runs on the same text; refused where they are another target's"
    )
    replay_gib: PositiveFloat = Field(100.0, strict=False, description="disk for replay_dir; what does not fit is captured each time")
    max_tries: PositiveInt = Field(3, description="failures after which a sample is dropped")
    max_dropped: Share = Field(0.01, strict=False, description="share of a rank's samples above which the run stops")
    cache_gib: NonNegativeFloat = Field(
        0.0, strict=False, description="the host's memory for features of earlier epochs; 0 captures every epoch anew"
    )

    @model_validator(mode="after")
    def _where(self):
        if self.in_trainer and self.transfer_dtype != "model" and self.replay_dir is None:
            raise ValueError(
                "transfer_dtype concerns capture workers, servers and replay_dir; set num_workers, server_url or replay_dir, or leave it "
                "out"
            )
        if self.num_workers == 0 and self.transfer != "ray":
            raise ValueError(f"transfer={self.transfer} concerns capture workers; set num_workers, or leave it out")
        if self.num_workers and self.cache_gib:
            raise ValueError(f"cache_gib={self.cache_gib:g} keeps features in the trainer's process; leave it out where num_workers is set")
        if self.memory_fraction is not None and (self.inference_engine_type == "hf" or self.server_url is not None):
            where = "inference_engine_type: hf" if self.inference_engine_type == "hf" else f"server_url={self.server_url!r}"
            raise ValueError(f"memory_fraction={self.memory_fraction:g} is for an engine that the run starts; leave it out with {where}")
        if self.server_url is not None:
            self._check_servers()
        return self

    def _check_servers(self) -> None:
        given = f"server_url={self.server_url!r}"
        if not self.servers:
            raise ValueError(f"{given} names no server; leave it out, or name one")
        if self.inference_engine_type == "hf":
            raise ValueError(f"{given} is for inference_engine_type: sglang or vllm; leave it out for hf")
        if self.num_workers:
            raise ValueError(f"{given}: the trainer asks servers itself; leave num_workers={self.num_workers} out")
        if len(set(self.servers)) < len(self.servers):
            raise ValueError(f"{given} names a server twice; name each once")
        for url in self.servers:
            parts = urlsplit(url)
            if parts.scheme != "http" or not parts.hostname or not _port(url) or parts.path:
                raise ValueError(f"server_url={url!r} is no URL of a server, like http://node7:30000")

    @property
    def in_trainer(self) -> bool:
        """The whole target stands in the trainer's own process."""
        return self.num_workers == 0 and not self.servers

    @property
    def servers(self) -> tuple[str, ...]:
        if self.server_url is None:
            return ()
        return tuple([self.server_url] if isinstance(self.server_url, str) else self.server_url)


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:  # not a number
        return None
