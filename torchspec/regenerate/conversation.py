"""Conversations on their way: which turns of a row the target is to answer, and what each is known by."""

from dataclasses import dataclass, field
from functools import cached_property

from torchspec.files import contents
from torchspec.rows.formats import Row


@dataclass
class Conversation:
    """Questions are groups of messages that each end where the assistant is to speak."""

    where: str
    questions: list[list[dict]]
    tools: list[dict] | None = None
    number: int = 1  # of the answers that its questions get
    history: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)  # one per answer
    ended: str | None = None  # "what: which"; why it ends before its last turn, or has no row at all
    dropped: dict | None = None  # the row of the answer that was left out, which ended it

    @cached_property
    def key(self) -> str:
        """Of all that tells it from other conversations: its questions, and where there are any, its tools and its number."""
        more = [self.tools, self.number] if self.tools or self.number > 1 else []
        return contents.key([self.questions, *more] if more else self.questions)

    @property
    def open(self) -> bool:
        return self.ended is None and len(self.rows) < len(self.questions)


def conversations_of(row: Row, answers: int, last_turn_only: bool) -> list[Conversation]:
    """As many as each prompt has answers; none where nobody asks."""
    questions = questions_of(row.messages)
    if last_turn_only:
        questions = last_question(row.messages, questions)
    if not questions:
        return []
    named = [row.where] if answers == 1 else [f"{row.where}/{number}" for number in range(1, answers + 1)]
    return [Conversation(where, questions, row.tools, number) for number, where in enumerate(named, start=1)]


def questions_of(messages: list[dict]) -> list[list[dict]]:
    """Messages between assistant turns, in groups that each end where the assistant is to speak. A greeting before the first user turn
    is no answer and stays; so does a call whose result follows, since only that call has the result."""
    groups, current, asked = [], [], False
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        answered = message["role"] == "assistant" and asked
        if answered and not (following and following["role"] == "tool"):
            groups.append(current)
            current, asked = [], False
        elif message["role"] != "assistant" or answered or not groups:
            current.append(message)
            asked = asked or message["role"] in ("user", "tool")
    return [*groups, current] if asked else groups


def last_question(messages: list[dict], questions: list[list[dict]]) -> list[list[dict]]:
    """All messages before the last answer, the earlier answers as they are, as one group."""
    if not questions:
        return []
    end = next(n for n, message in enumerate(messages, start=1) if message is questions[-1][-1])
    return [messages[:end]]
