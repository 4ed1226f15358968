"""One record of a data set -> one row: OpenAI messages, ShareGPT, UltraChat, and the token rows of `torchspec regenerate`."""

from dataclasses import dataclass
from itertools import islice

from torchspec.rows.calls import tools_of
from torchspec.rows.keys import Problem, check_row, shown, with_system
from torchspec.rows.messages import alternating, messages_of

FORMS = {"messages": messages_of, "conversations": messages_of, "data": alternating}


@dataclass(frozen=True)
class Row:
    where: str  # file:line (from 1) or dataset:index (from 0)
    messages: list[dict] | None = None
    tools: list[dict] | None = None  # JSON schemas of the functions that the assistant may call
    prompt_ids: list[int] | None = None  # with response_ids: what the target really saw and wrote; wins over tokenizing again
    response_ids: list[int] | None = None
    tokenizer: str | None = None  # tokenizer_hash of the target that wrote the ids
    last: dict | None = None  # where ids name no tokenizer: the row's own last message, to be found in them
    opening: str | None = None  # what the user says before the first answer; none where the row holds ids alone
    problem: str | None = None  # "what: which"; the row is unusable


def to_row(where: str, fields: dict) -> Row:
    """null stands for absent, as in tables made from JSON."""
    fields = {key: value for key, value in fields.items() if value is not None}
    check_row(fields)
    if "prompt_ids" in fields or "response_ids" in fields:
        return _token_row(where, fields)
    form = next((name for name in FORMS if name in fields), None)
    if form is None:
        keys = ", ".join(map(shown, islice(fields, 20))) or "no keys"
        raise Problem(f"no key 'messages', 'conversations' or 'data': the row has {keys}")
    messages = FORMS[form](fields[form])
    return Row(where, with_system(fields, messages), tools_of(fields), opening=_opening(messages))


def _token_row(where: str, fields: dict) -> Row:
    ids = {key: _int_list(fields, key) for key in ("prompt_ids", "response_ids")}
    tokenizer = fields.get("tokenizer")
    if not isinstance(tokenizer, str | None):
        raise Problem(f"tokenizer is no hash: {shown(tokenizer)}")
    messages = messages_of(fields["messages"]) if "messages" in fields else None
    last, opening = (messages[-1], _opening(messages)) if messages else (None, None)
    return Row(where, **ids, tokenizer=tokenizer, last=last if tokenizer is None else None, opening=opening)


def _opening(messages: list[dict]) -> str:
    texts = []
    for message in messages:
        if message["role"] == "user":
            texts.append(message["content"])
        elif texts and message["role"] == "assistant":
            break
    return "\n".join(texts)


def _int_list(fields: dict, key: str) -> list[int]:
    ids = fields.get(key)
    if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
        raise Problem(f"{key} is not a list of token ids: it must hold at least one integer and nothing else")
    return ids
