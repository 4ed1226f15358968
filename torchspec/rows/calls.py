"""Tools and their calls, in the one form that servers hand to chat templates."""

import json

from torchspec.rows.keys import Problem, is_empty

DEEPEST = 64  # levels of arguments and schemas; no API nests so deep, and a template's `tojson` has no more than a thousand


def from_json(text: str, what: str) -> object:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # "\ud83d" alone is valid JSON and no text: half an emoji, which no tokenizer accepts
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Problem(f"text holds half of a surrogate pair: {what}") from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"text that should be JSON is not: {what} ({error})") from error
    return value


def tools_of(fields: dict) -> list[dict] | None:
    """`functions` is the older name of OpenAI's API for the same without the wrapper."""
    tools, functions = (_objects(fields.get(name), name) for name in ("tools", "functions"))
    if tools and functions:
        raise Problem("tools have two names: the row has 'tools' and 'functions'")
    return [_wrapped(tool) for tool in tools or functions] or None


def _objects(tools: object, name: str) -> list[dict]:
    """Some tables keep the list as JSON text, because its objects have no common type."""
    if is_empty(tools):
        return []
    if isinstance(tools, str):
        tools = from_json(tools, name)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and isinstance(tool.get("function", {}), dict) for tool in tools):
        raise Problem(f"{name} are no list of objects: each must be {{'type': 'function', 'function': {{'name', ...}}}}")
    _check_json(tools, name)
    return tools


def _wrapped(tool: dict) -> dict:
    """No server accepts a function alone."""
    if "function" in tool or "name" not in tool or tool.get("type", "function") != "function":
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def calls_of(number: int, message: dict) -> list[dict]:
    """OpenAI's arguments are JSON text, templates take objects: servers parse them before they render, and so does this.

    `function_call` is the API's older name for one call.
    """
    calls, old = message.get("tool_calls"), message.get("function_call")
    if not is_empty(calls) and not is_empty(old):
        raise Problem(f"tool calls have two names: message {number} has 'tool_calls' and 'function_call'")
    if not is_empty(old):
        calls = [{"type": "function", "function": old}]
    if is_empty(calls):
        return []
    if isinstance(calls, str) and calls.lstrip().startswith("["):
        calls = from_json(calls, f"tool_calls of message {number}")
    if not isinstance(calls, list):
        raise Problem(f"tool_calls are no list: message {number} holds {type(calls).__name__}")
    return [_call(number, call) for call in calls]


def _call(number: int, call: object) -> dict:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise Problem(f"tool call without a function name: message {number}")
    arguments, what = function.get("arguments"), f"arguments of {function['name']!r} in message {number}"
    if isinstance(arguments, str):
        arguments = from_json(arguments, what) if arguments.strip() else {}
    if not isinstance(arguments or {}, dict):
        raise Problem(f"tool call arguments are no object: {function['name']!r} in message {number}")
    call = {**call, "function": {**function, "arguments": arguments or {}}}
    _check_json(call, what)
    return call


def _check_json(value: object, what: str, depth: int = 0) -> None:
    """What a template can write: tables hold times and bytes as well."""
    if depth > DEEPEST:
        raise Problem(f"nested too deeply: {what} has more than {DEEPEST} levels")
    if isinstance(value, dict):
        for item in value.values():
            _check_json(item, what, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, what, depth + 1)
    elif value is not None and not isinstance(value, str | int | float):
        raise Problem(f"a value that JSON cannot hold: {what} has {type(value).__name__}")
