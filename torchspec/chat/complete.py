"""What the row holds must stand in the answer that is supervised: a template that knows no tools or thoughts drops them without a word,
an end token quoted in the text ends it there, and the draft would learn text that no target writes."""

import json
import re
from collections.abc import Collection, Iterator

from torchspec.rows.conversation import BadRow

OPENED = re.compile(r"<think>\s*(</think>\s*)?$")  # a thought that the generation prompt opens, or opens and closes


def check_complete(number: int, message: dict, prompt: str, answer: str, ends: Collection[str]) -> None:
    """answer: what the template adds to the prompt. ends: tokens at which the engine stops."""
    supervised = answer[: _end(answer, ends)]
    if _lost(message, prompt, supervised) and not _lost(message, prompt, answer):
        raise BadRow(
            f"an answer quotes a token that ends a turn: message {number} goes on after {_quoted(supervised, ends)!r}, where the engine "
            "stops; reword it"
        )
    if lost := _lost(message, prompt, supervised):
        raise BadRow(lost.format(number=number))


def _lost(message: dict, prompt: str, answer: str) -> str | None:
    """The reason, with room for the message's number."""
    reasoning = (message.get("reasoning_content") or "").strip()
    if reasoning not in answer:
        return (
            "the chat template leaves out reasoning_content: message {number}; remove the key to learn the answer alone, or use the "
            "thinking mode that renders it"
        )
    for call in _calls(message):
        function = call.get("function", call)
        name = function.get("name", "")
        if name not in answer:
            return f"the chat template leaves out tool calls: message {{number}} calls {_braced(name)}"
        for text in _texts(function.get("arguments")):
            if not any(form in answer for form in _written(text)):
                return f"the chat template leaves out arguments of tool calls: message {{number}} calls {_braced(name)}"
    content = (message["content"] or "").strip()
    if content in answer or _squeezed(content).removeprefix(_opened(prompt)) in _squeezed(answer):
        return None
    if _calls(message):
        return "the chat template leaves out text beside tool calls: message {number}; remove one of the two"
    if "</think>" in content:
        return "the chat template leaves out thoughts inside content: message {number}; give them as reasoning_content or remove them"
    return "the chat template leaves out content: message {number}"


def _calls(message: dict) -> list[dict]:
    legacy = message.get("function_call")
    return (message.get("tool_calls") or []) + ([legacy] if isinstance(legacy, dict) else [])


def _texts(arguments: object) -> Iterator[str]:
    """Every key and every text of a call's arguments; numbers and truths have too many spellings."""
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            yield key
            yield from _texts(value)
    elif isinstance(arguments, list):
        for value in arguments:
            yield from _texts(value)
    elif isinstance(arguments, str):
        yield arguments


def _written(text: str) -> Iterator[str]:
    """As it is, as JSON, as JSON without other scripts, as Python writes it, and as HTML-safe JSON."""
    yield text.strip()
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    yield once
    yield json.dumps(text)[1:-1]
    yield repr(text)[1:-1]
    yield json.dumps(once, ensure_ascii=False)[1:-1]  # JSON text inside JSON


def _end(answer: str, ends: Collection[str]) -> int | None:
    return min((at + len(end) for end in ends if (at := answer.find(end)) >= 0), default=None)


def _quoted(supervised: str, ends: Collection[str]) -> str:
    return next(end for end in ends if supervised.endswith(end))


def _opened(prompt: str) -> str:
    opened = OPENED.search(prompt[-64:])
    return _squeezed(opened[0]) if opened else ""


def _squeezed(text: str) -> str:
    """Templates lay out anew what they split, such as a thought and the answer after it."""
    return "".join(text.split())


def _braced(name: str) -> str:
    return repr(name).replace("{", "{{").replace("}", "}}")
