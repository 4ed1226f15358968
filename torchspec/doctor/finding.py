"""One row of the doctor's table."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    area: str
    check: str
    found: str
    verdict: Literal["ok", "absent", "look", "bad"] = "ok"  # absent, and not needed; look: a person should judge; bad: a run would fail
    fix: str = ""
