"""What a run did: counted while it goes on, said at its end."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torchspec.console import console
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.drop import CUT


@dataclass
class Counts:
    """Reasons are counted by the part before the first ": "."""

    seen: int = 0  # conversations of the input: answered, refused, or no work
    already_there: int = 0
    duplicates: int = 0
    answered: int = 0
    rows: int = 0  # answers
    tokens: int = 0
    stopped: int = 0
    retokenized: int = 0  # answers of servers that give no ids
    changed: int = 0  # of these, answers whose text does not come back from the ids, or had another number of them
    seconds: float = 0.0
    dropped: Counter[str] = field(default_factory=Counter)  # answers
    ended: Counter[str] = field(default_factory=Counter)  # conversations that end before their last turn
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, conversations: list[Conversation], seconds: float) -> None:
        self.seen, self.seconds = self.seen + len(conversations), self.seconds + seconds
        for conversation in conversations:
            if conversation.dropped:
                self.dropped[kind(conversation.ended)] += 1
            if conversation.rows:
                self.answered += 1
                self.rows += len(conversation.rows)
                self.tokens += sum(len(row["response_ids"]) for row in conversation.rows)
                self.stopped += sum(row["finish"] == "stop" for row in conversation.rows)
                self.retokenized += sum(row["retokenized"] is not None for row in conversation.rows)
                self.changed += sum(row["retokenized"] == "changed" for row in conversation.rows)
                if conversation.ended:
                    self.ended[kind(conversation.ended)] += 1

    @property
    def line(self) -> str:
        """Beside the bar: how fast, and how much of it the cap cuts."""
        cut = self.dropped[CUT] + self.rows - self.stopped
        return f"{self._rate:,.0f} tok/s, {cut / max(1, self.rows + self.dropped.total()):.0%} cut"

    @property
    def _rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def report(self, out: Path) -> None:
        duplicates = f", {self.duplicates} are duplicates" if self.duplicates else ""
        console.print(
            f"{out}: {self.rows} answers written ({self.already_there} conversations were there{duplicates}), "
            f"{self.tokens:,} tokens, {self._rate:,.0f} tok/s; {self.stopped} ended by themselves, the rest at the cap"
        )
        for reason, count in self.dropped.items():
            console.print(f"  {count} answers were dropped: {reason}", markup=False)
        if self.retokenized:
            console.print(
                f"  the server gave no token ids: {self.retokenized} answers were tokenized here, and {self.changed} of them do not come "
                "back as they were; a server that gives its ids (vLLM, SGLang, llama.cpp) has none of these",
                markup=False,
            )
        for reason, count in self.ended.items():
            console.print(f"  {count} conversations end before their last turn: {reason}", markup=False)
        for reason, count in self.rejected.items():
            console.print(f"  rejected {count}: {reason} (listed in {out}.rejected)", markup=False)


def kind(reason: str) -> str:
    return reason.partition(": ")[0]
