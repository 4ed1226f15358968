"""One record of a data set -> one row: OpenAI messages, ShareGPT, UltraChat, and the token rows of `torchspec regenerate`."""

import json
from dataclasses import dataclass
from itertools import cycle

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


@dataclass(frozen=True)
class Row:
    where: str  # file:line (from 1) or dataset:index (from 0)
    messages: list[dict] | None = None
    tools: list[dict] | None = None  # JSON schemas of the functions that the assistant may call
    prompt_ids: list[int] | None = None  # with response_ids: what the target really saw and wrote; wins over tokenizing again
    response_ids: list[int] | None = None
    problem: str | None = None  # "what: which"; the row is unusable


class Problem(Exception):
    """Why a record is unusable; ends up in Row.problem."""


def to_row(where: str, fields: dict) -> Row:
    """null stands for absent, as in tables made from JSON."""
    fields = {key: value for key, value in fields.items() if value is not None}
    if "prompt_ids" in fields or "response_ids" in fields:
        return Row(where, prompt_ids=_int_list(fields, "prompt_ids"), response_ids=_int_list(fields, "response_ids"))
    tools = _tools(fields.get("tools"))
    if "messages" in fields:
        return Row(where, _messages(fields["messages"]), tools)
    if "conversations" in fields:
        return Row(where, _system(fields) + _messages(fields["conversations"]), tools)
    if "data" in fields:
        return Row(where, _alternating(fields["data"]), tools)
    keys = ", ".join(map(repr, fields)) or "no keys"
    raise Problem(f"no key 'messages', 'conversations' or 'data': the row has {keys}")


def _int_list(fields: dict, key: str) -> list[int]:
    ids = fields.get(key)
    if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
        raise Problem(f"{key} is not a list of token ids: it must hold at least one integer and nothing else")
    return ids


def _tools(tools: object) -> list[dict] | None:
    """Some tables keep the list as JSON text, because its objects have no common type."""
    if isinstance(tools, str):
        tools = _from_json(tools, "tools") if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and isinstance(tool.get("function", {}), dict) for tool in tools):
        raise Problem("tools are no list of objects: each must be {'type': 'function', 'function': {'name', ...}}")
    return tools


def _system(fields: dict) -> list[dict]:
    """ShareGPT files keep the system prompt beside the conversation."""
    return _messages([{"from": "system", "value": fields["system"]}]) if fields.get("system") else []


def _alternating(raw: object) -> list[dict]:
    """UltraChat: a list of texts, the user's first."""
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise Problem("data is no list of texts: it must alternate between user and assistant")
    return _messages([{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), raw, strict=False)])


def _messages(raw: object) -> list[dict]:
    if not isinstance(raw, list) or not raw:
        raise Problem(f"messages are no list: {type(raw).__name__}" if raw else "no messages")
    return [_message(number, message) for number, message in enumerate(raw)]


def _message(number: int, raw: object) -> dict:
    """{"role", "content"} and whatever else the template may read."""
    if not isinstance(raw, dict):
        raise Problem(f"message is no object: message {number} is {type(raw).__name__}")
    role_key, text_key = ("role", "content") if "role" in raw else ("from", "value")
    name = raw.get(role_key)
    if not isinstance(name, str) or name not in ROLES:
        raise Problem(f"unknown role: {name!r} in message {number}")
    rest = {key: value for key, value in raw.items() if key not in (role_key, text_key, *REASONING) and value is not None}
    if rest.get("tool_calls"):
        rest["tool_calls"] = _tool_calls(number, rest["tool_calls"])
    return {"role": ROLES[name], "content": raw.get(text_key), **_reasoning(number, raw), **rest}


def _reasoning(number: int, raw: dict) -> dict:
    values = [raw[name] for name in REASONING if raw.get(name)]
    if not values:
        return {}
    if not isinstance(values[0], str):
        raise Problem(f"reasoning is not text: message {number} holds {type(values[0]).__name__}")
    return {"reasoning_content": values[0]}


def _tool_calls(number: int, calls: object) -> list[dict]:
    """OpenAI's arguments are JSON text, templates take objects: servers parse them before they render, and so does this."""
    if not isinstance(calls, list):
        raise Problem(f"tool_calls are no list: message {number} holds {type(calls).__name__}")
    return [_tool_call(number, call) for call in calls]


def _tool_call(number: int, call: object) -> dict:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Problem(f"tool call without a function name: message {number}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _from_json(arguments, f"arguments of {function['name']!r} in message {number}") if arguments.strip() else {}
    if not isinstance(arguments or {}, dict):
        raise Problem(f"tool call arguments are no object: {function['name']!r} in message {number}")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _from_json(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Problem(f"text that should be JSON is not: {what} ({error})") from error
