"""What a conversation must be before any chat template sees it."""

NO_ANSWER = "no assistant turn"
ROLES = {"system", "developer", "user", "assistant", "tool"}


class BadRow(Exception):
    """Why one row was rejected: "what: which". Rows are counted by the part before the first ": "."""


def assistant_turns(messages: list[dict]) -> list[int]:
    """Positions of the supervised assistant turns of a sound conversation.

    A greeting before the first user turn and a turn of weight 0 are history: no server is asked for the one, and the row asks not to
    learn the other.
    """
    for number, message in enumerate(messages):
        _check_message(number, message)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRow(NO_ANSWER)
    asked = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    if answers[-1] < asked:
        raise BadRow("no user turn before the last answer")
    turns = [i for i in answers if i > asked and messages[i].get("weight") != 0]
    if not turns:
        raise BadRow("no assistant turn is to be learned: every weight is 0")
    for i in turns:
        if messages[i - 1]["role"] == "assistant":
            raise BadRow(f"two answers in a row, and no server is asked for the second: message {i} follows message {i - 1}")
    return turns


def _check_message(number: int, message: dict) -> None:
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise BadRow(f"unknown role: {role!r} in message {number}; known are {', '.join(sorted(ROLES))}")
    stands_without_content = role == "assistant" and bool(message.get("tool_calls") or message.get("reasoning_content"))
    if content is None and stands_without_content:
        return
    if not isinstance(content, str):
        raise BadRow(f"content is not text: message {number} holds {type(content).__name__}")
    if role == "assistant" and not content.strip() and not stands_without_content:
        raise BadRow(f"empty assistant content: message {number}")
