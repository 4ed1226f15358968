"""The rows that preparing leaves out: every one listed, counted by reason, and bounded."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TextIO

from torchspec.errors import UserError
from torchspec.rows.conversation import NO_ANSWER


@dataclass
class Ledger:
    """What was left out: every case in the listing, counts by reason."""

    listing: TextIO
    rows: int = 0
    rejected: Counter = field(default_factory=Counter)
    filtered: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason -> first where

    def reject(self, where: str, reason: str) -> None:
        self._note(self.rejected, "rejected", where, reason)

    def filter(self, where: str, reason: str) -> None:
        self._note(self.filtered, "filtered", where, reason)

    def _note(self, counts: Counter, kind: str, where: str, reason: str) -> None:
        general = reason.partition(": ")[0]
        counts[general] += 1
        self.first.setdefault(general, where)
        self.listing.write(json.dumps({"where": where, "reason": reason, "kind": kind}) + "\n")

    def check(self, samples: int, max_rejected: float) -> None:
        rejected, filtered = self.rejected.total(), self.filtered.total()
        if rejected > max_rejected * self.rows:
            raise UserError(
                f"{rejected} of {self.rows} rows are rejected, more than max_rejected={max_rejected:g} allows; "
                f"{self._worst(self.rejected)}; {self._prompts() or 'mend the data or raise max_rejected'}"
            )
        if samples == 0:
            why = self._worst(self.rejected + self.filtered) if rejected + filtered else "the inputs hold no rows"
            what = "; ".join(filter(None, (why, self._prompts())))
            raise UserError(f"no sample is left of {self.rows} rows ({rejected} rejected, {filtered} filtered); {what}")

    def _prompts(self) -> str:
        """What to do where most of the rejected rows wait for an answer."""
        if not self.rejected or self.rejected.most_common(1)[0][0] != NO_ANSWER:
            return ""
        return "these are prompts: let the target answer them with `torchspec regenerate`, and take what it writes"

    def _worst(self, counts: Counter) -> str:
        reason, count = counts.most_common(1)[0]
        return f"the most frequent reason is '{reason}' ({count} times, first at {self.first[reason]})"
