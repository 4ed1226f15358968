"""What a server is to load, what it is asked at a time, and what it counted."""

from dataclasses import dataclass
from pathlib import Path

from torchspec.export.commands import Drafting


@dataclass(frozen=True)
class Served:
    """What a started server is to load."""

    target: Path
    draft: Path | None  # None: the target serves alone, and the next two are nothing
    method: str
    draft_tokens: int
    dtype: str
    gguf_facts: dict  # what a converted draft must say of itself

    @property
    def drafting(self) -> Drafting:
        return Drafting(str(self.draft), self.method, self.draft_tokens)

    @classmethod
    def target_alone(cls, target: Path, dtype: str) -> "Served":
        return cls(target, None, "", 0, dtype, {})


@dataclass(frozen=True)
class Load:
    """The most that a server has to hold at a time."""

    prompts: int
    tokens: int  # of the longest prompt with its answer


@dataclass(frozen=True)
class Steps:
    """What a server counted. B-1 draft tokens a step."""

    steps: int  # target forwards that verified drafts of one sequence
    accepted: list[int]  # [k-1] steps that accepted draft token k, k = 1..B-1

    def since(self, before: "Steps") -> "Steps":
        return Steps(self.steps - before.steps, [a - b for a, b in zip(self.accepted, before.accepted, strict=True)])
