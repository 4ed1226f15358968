"""What the target is asked turn by turn, and the rows that its answers become. Who answers is another matter: Transformers, or a server."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torchspec.chat.format import ChatFormat
from torchspec.errors import UserError
from torchspec.files import contents
from torchspec.regenerate.conversation import Conversation
from torchspec.regenerate.drop import KEEP_ALL, Drop
from torchspec.regenerate.history import parse_answer
from torchspec.rows.conversation import BadRow
from torchspec.target.language_config import positions

NO_ROOM = "too long for the target: prompt and max_new_tokens together"


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperatures: tuple[float, ...]  # 0 = greedy; several are dealt by the key of the conversation
    seed: int

    def temperature(self, conversation: Conversation) -> float:
        return self.temperatures[int(conversation.key, 16) % len(self.temperatures)]

    def seed_of(self, turns: list[tuple[str, int]]) -> int:
        """turns: (key of the conversation, turn). 31 bits, since llama.cpp takes no more; two turns never draw the same numbers."""
        return int(contents.key([self.seed, turns]), 16) % 2**31


@dataclass(frozen=True)
class Question:
    text: str
    ids: list[int]


@dataclass(frozen=True)
class Answer:
    ids: list[int]  # stop token included
    finish: str  # stop or length
    retokenized: str | None = None  # where the ids are not the engine's own: same or changed


class Answering(Protocol):
    """The target at work."""

    turns: "Turns"
    made_with: dict  # what of the answers is its doing, for the header

    def converse(self, conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
        """Answers all open turns of each; yields them as they are finished, in any order."""
        ...


class Turns:
    """The target's chat template and the sampling."""

    def __init__(self, chat: ChatFormat, sampling: Sampling, max_length: int | None = None, drop: Drop = KEEP_ALL):
        """max_length: most tokens of a prompt with its answer, beside the target's positions."""
        self.chat, self.tokenizer, self.sampling, self.drop = chat, chat.tokenizer, sampling, drop
        self.target = Path(chat.tokenizer.name_or_path)  # the folder that the chat format was loaded from
        self.stop = chat.stop_ids
        self.room = min((n for n in (positions(self.target), max_length) if n is not None), default=None)
        if self.room is not None and sampling.max_new_tokens >= self.room:
            raise UserError(
                f"max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt in the target's {self.room} positions; give less"
            )

    def header(self, made_with: dict) -> dict:
        """All that decides an answer beside its question. A seed decides nothing where nothing is drawn."""
        first, *more = self.sampling.temperatures
        seed = self.sampling.seed if any(self.sampling.temperatures) else None
        sampling = {"max_new_tokens": self.sampling.max_new_tokens, "temperature": [first, *more] if more else first, "seed": seed}
        chat = {"template": self.chat.template_hash, "thinking": self.chat.thinking, "stop_ids": sorted(self.stop)}
        return {"target": contents.folder_key(self.target), **made_with, **chat, **sampling}

    def ask(self, conversation: Conversation) -> Question | None:
        """Text and ids that the server would see at the next turn; none where there is none."""
        if not conversation.open:
            return None
        messages = conversation.history + conversation.questions[len(conversation.rows)]
        try:
            text = self.chat.render(messages, add_generation_prompt=True, tools=conversation.tools)
        except BadRow as bad:
            conversation.ended = str(bad)
            return None
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        needed = len(ids) + self.sampling.max_new_tokens
        if self.room is not None and needed > self.room:
            conversation.ended = f"{NO_ROOM}: {needed} of {self.room} positions"
            return None
        conversation.history = messages
        return Question(text, ids)

    def keep(self, conversation: Conversation, question: Question, answer: Answer) -> None:
        """The answer as a row, and as the history of the next turn."""
        parsed = parse_answer(self.chat, question.text, answer.ids)
        conversation.history = [*conversation.history, parsed.message]
        row = {
            "id": f"{conversation.where}#{len(conversation.rows) + 1}",
            "messages": conversation.history,
            "prompt_ids": question.ids,
            "response_ids": answer.ids,
            "finish": answer.finish,
            "temperature": self.sampling.temperature(conversation),
            "retokenized": answer.retokenized,
            "last": False,  # of its conversation
            "ended": None,
        }
        if reason := self.drop.reason(answer.ids, answer.finish, self.tokenizer):
            conversation.dropped, conversation.ended = row, reason
            return
        conversation.rows.append(row)
        if conversation.open:
            conversation.ended = parsed.ended

    def close(self, conversation: Conversation) -> Conversation:
        """No turn follows: its last row says so, and why."""
        if conversation.rows:
            conversation.rows[-1] |= {"last": True, "ended": conversation.ended}
        return conversation
