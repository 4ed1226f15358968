"""The messages of a record in the one form that templates see: what servers normalise before they render is normalised here too.

vLLM (entrypoints/chat_utils.py) and SGLang hand to a template the role, the content, thoughts, calls, `name` and `tool_call_id`, and
nothing else; an empty list of calls is dropped, and content that is null is "".
"""

from itertools import cycle

from torchspec.rows.calls import calls_of, from_json
from torchspec.rows.keys import Problem, check_media, check_placeholders, check_unclear, is_supervised, shown

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # names of one thing; the first is used from here on
TEXT_PARTS = ("text", "input_text", "output_text")


def messages_of(raw: object) -> list[dict]:
    raw = _list(raw, "messages")
    if not isinstance(raw, list) or not raw:
        raise Problem(f"messages are no list: {type(raw).__name__}" if raw else "no messages")
    return [_message(number, message) for number, message in enumerate(raw)]


def alternating(raw: object) -> list[dict]:
    """UltraChat: a list of texts, the user's first."""
    raw = _list(raw, "data")
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise Problem("data is no list of texts: it must alternate between user and assistant")
    return messages_of([{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), raw, strict=False)])


def _list(raw: object, what: str) -> object:
    """Tables without a type for a list of messages, CSV above all, keep it as JSON text."""
    return from_json(raw, what) if isinstance(raw, str) and raw.lstrip().startswith("[") else raw


def _message(number: int, raw: object) -> dict:
    if not isinstance(raw, dict):
        raise Problem(f"message is no object: message {number} is {type(raw).__name__}")
    raw, place = {key: value for key, value in raw.items() if value is not None}, f"message {number}"
    role_key, text_key = ("role", "content") if "role" in raw else ("from", "value")
    name = raw.get(role_key)
    if not isinstance(name, str) or name not in ROLES:
        raise Problem(f"unknown role: {shown(name)} in {place}")
    check_media(raw, place)
    check_unclear(raw, place)
    message = {"role": ROLES[name], "content": raw.get(text_key)}
    message |= {key: raw[key] for key in ("name", "tool_call_id") if isinstance(raw.get(key), str)}
    calls = calls_of(number, raw)
    if message["role"] == "assistant":
        message |= _thoughts(number, raw) | ({"tool_calls": calls} if calls else {})
        message |= {} if is_supervised(raw, place) else {"weight": 0}
    elif calls:
        raise Problem(f"tool calls outside an answer: {place} is of role {name!r}")
    return message | {"content": _content(number, message)}


def _thoughts(number: int, raw: dict) -> dict:
    values = [raw[name] for name in REASONING if raw.get(name)]
    for value in values:
        if not isinstance(value, str):
            raise Problem(f"reasoning is not text: message {number} holds {type(value).__name__}")
    if len(set(values)) > 1:
        raise Problem(f"thoughts have two names that differ: message {number}")
    return {"reasoning_content": values[0]} if values else {}


def _content(number: int, message: dict) -> str:
    content = message["content"]
    if isinstance(content, list):
        content = _joined(number, message["role"], content)
    if content is None and ("tool_calls" in message or "reasoning_content" in message):
        content = ""
    if not isinstance(content, str):
        raise Problem(f"content is not text: message {number} holds {type(content).__name__}")
    if message["role"] != "assistant":
        check_placeholders(content, f"message {number}")
    return content


def _joined(number: int, role: str, parts: list) -> str:
    """OpenAI's other form, a list of parts. vLLM joins texts by a newline, SGLang by a space: either is a prompt that a server may be
    given, but an answer would be taught a character that nobody wrote."""
    texts = [_part(number, part) for part in parts]
    if role == "assistant" and len(texts) > 1:
        raise Problem(f"an answer of several parts, which every server joins in its own way: message {number} has {len(texts)}")
    return "\n".join(texts)


def _part(number: int, part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise Problem(f"content holds a part that is no text: a part of message {number} is of type {shown(kind)}")
    return part["text"]
