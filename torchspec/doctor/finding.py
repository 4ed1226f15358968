"""One row of the doctor's table."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    area: str
    check: str
    found: str
    verdict: Literal["ok", "look", "bad"] = "ok"  # look: a person should judge; bad: a run would fail or be worthless
    fix: str = ""
