"""Oracle: what vLLM's and SGLang's sources hand to a template for the same message, and the reason for every key that is refused."""

import pytest

from torchspec.rows.conversation import BadRow, assistant_turns
from torchspec.rows.formats import to_row
from torchspec.rows.keys import MEDIA, SYSTEM, WEIGHTS, Problem

ASK, SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def row(messages: list[dict] = (ASK, SAY), **beside: object):
    return to_row("here:1", {"messages": [dict(message) for message in messages], **beside})


def say(**keys: object) -> dict:
    """The one answer of a row, as the template sees it."""
    return row([ASK, {**SAY, **keys}]).messages[1]


def calling(arguments: object) -> dict:
    return {**SAY, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize("empty", [[], None, "", {}])
def test_an_empty_list_of_calls_is_none(empty):
    assert say(tool_calls=empty, function_call=empty) == SAY


def test_null_content_is_empty_beside_calls_and_thoughts():
    assert say(content=None, tool_calls=[CALL]) == {**SAY, "content": "", "tool_calls": [CALL]}
    assert say(content=None, reasoning="Hm.") == {**SAY, "content": "", "reasoning_content": "Hm."}
    with pytest.raises(Problem, match="content is not text: message 1 holds NoneType"):
        say(content=None)


def test_keys_that_no_server_hands_to_a_template_are_left_out():
    assert say(id="m1", timestamp=3, name="Bo", metadata={"a": 1}) == {**SAY, "name": "Bo"}
    result = {"role": "tool", "content": "3", "tool_call_id": "c1", "ms": 7}
    assert row([ASK, result, SAY]).messages[1] == {"role": "tool", "content": "3", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "text", "text": "a", "image_url": None}], "a"),
        (["a", {"type": "input_text", "text": "b"}], "a\nb"),
        ([], ""),
    ],
)
def test_content_in_parts_is_text(parts, text):
    assert row([{"role": "user", "content": parts}, SAY]).messages[0]["content"] == text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "part of message 0 is of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "part of message 0 is of type 'text'"),
        ({"role": "user", "content": [3]}, "part of message 0 is of type 'int'"),
        ({**SAY, "content": ["a", "b"]}, "an answer of several parts, which every server joins in its own way: message 0 has 2"),
        ({"role": "user", "content": {"text": "x"}}, "content is not text: message 0 holds dict"),
        ({**ASK, "tool_calls": [CALL]}, "tool calls outside an answer: message 0 is of role 'user'"),
        ({**SAY, "tool_calls": [CALL], "function_call": CALL["function"]}, "tool calls have two names: message 0"),
        ({**SAY, "reasoning": "a", "thinking": "b"}, "thoughts have two names that differ: message 0"),
        ({**SAY, "prefix": True}, "a key changes the meaning of a message and is not known here: message 0 has 'prefix'"),
        ({**SAY, "mask": 0}, "not known here: message 0 has 'mask'"),
        ({**SAY, "refusal": "No."}, "not known here: message 0 has 'refusal'"),
        ({**SAY, "audio": {"id": "x"}}, "images, videos and sound cannot be captured: message 0 has 'audio'"),
        ({"role": "user", "content": "<image>\nWhat is it?"}, "message 0 holds the placeholder '<image>'"),
        ({"role": "user", "content": "What is it? <video>\n"}, "message 0 holds the placeholder '<video>'"),
        ({"role": "user", "content": "a <|image_pad|> b"}, r"message 0 holds the placeholder '<\|image_pad\|>'"),
        (calling({"x": b"1"}), "a value that JSON cannot hold: arguments of 'f' in message 0 has bytes"),
        (calling('{"x": "\\ud83d"}'), "half of a surrogate pair: arguments of 'f'"),
        (calling('{"x":' + "[" * 99 + "]" * 99 + "}"), "nested too deeply: arguments of 'f'"),
        ({"role": "x" * 10**6, "content": "x"}, r"^unknown role: '.{1,40}' in message 0$"),
    ],
)  # fmt: skip
def test_messages_are_refused_by_name(message, reason):
    with pytest.raises(Problem, match=reason):
        row([message, SAY])


def test_html_and_pictures_of_code_are_text():
    for text in ("<video>\n<source src=a>\n</video>", "Use <image> tags inside a line.", "x < y"):
        assert row([{"role": "user", "content": text}, {**SAY, "content": "<image>"}]).messages[0]["content"] == text


def test_calls_and_functions_of_the_older_api_become_tools():
    function = {"name": "f", "parameters": {}}
    old = row([ASK, {**SAY, "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}], functions=[function])
    assert old.messages[1] == {**SAY, "content": "", "tool_calls": [CALL]} and old.tools == [TOOL]
    assert (
        row(tools=[function]).tools
        == row(tools=[{"type": "function", **function}]).tools
        == row(tools=[TOOL], functions=[]).tools
        == [TOOL]
    )
    with pytest.raises(Problem, match="tools have two names: the row has 'tools' and 'functions'"):
        row(tools=[TOOL], functions=[function])


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_zero_keeps_a_turn_as_history(name):
    for no in (0, 0.0, False):
        messages = row([ASK, {**SAY, name: no}, ASK, {**SAY, name: True}]).messages
        assert messages[1] == {**SAY, "weight": 0} and messages[3] == SAY and assistant_turns(messages) == [3]
    for odd in (0.5, "0", [0, 1], -1):
        with pytest.raises(Problem, match=rf"a weight is neither 0 nor 1: {name} of message 1 is "):
            row([ASK, {**SAY, name: odd}])
    assert row([{**ASK, name: 0.5}, SAY]).messages == [ASK, SAY]  # of no answer: nothing is learned from it anyhow
    with pytest.raises(Problem, match="nothing is to be learned from the row: its weight is 0"):
        row(**{name: False})
    assert row(**{name: 1}).messages == [ASK, SAY]


def test_masked_is_the_other_way_round():
    messages = row([ASK, {**SAY, "masked": True}, ASK, {**SAY, "masked": False}]).messages
    assert assistant_turns(messages) == [3] and messages[1]["weight"] == 0


def test_weights_of_a_row():
    assert row(loss=0.37).messages == [ASK, SAY]  # measured by somebody
    for name in ("weight", "sample_weight"):
        with pytest.raises(Problem, match=f"a weight is neither 0 nor 1: {name} of the row is 0.5"):
            row(**{name: 0.5})
    with pytest.raises(Problem, match="loss_mask of the row is "):
        to_row("here:1", {"prompt_ids": [1], "response_ids": [2, 3], "loss_mask": [0, 1]})


@pytest.mark.parametrize(
    "form", [{"messages": [ASK, SAY]}, {"conversations": [{"from": "human", "value": "Hi"}, SAY]}, {"data": ["Hi", "Hello"]}]
)
@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_prompt_beside_any_form_is_its_first_message(form, name):
    system = {"role": "system", "content": "Be brief."}
    assert to_row("here:1", {**form, name: "Be brief."}).messages == [system, ASK, SAY]
    assert to_row("here:1", {**form, name: " "}).messages == [ASK, SAY]
    assert row([system, ASK, SAY], **{name: "Be brief. "}).messages == [system, ASK, SAY]
    with pytest.raises(Problem, match=f"two system prompts that differ: '{name}' beside the conversation and its system message"):
        row([system, ASK, SAY], **{name: "Be long."})
    with pytest.raises(Problem, match=f"a text beside the conversation is none: '{name}' is list"):
        row(**{name: ["Be brief."]})


def test_an_instruction_beside_the_conversation_is_part_of_it_or_refused():
    assert row(instruction="Hi ").messages == [ASK, SAY]
    with pytest.raises(Problem, match="a text beside the conversation is no part of it: 'instruction'; a system prompt is named 'system'"):
        row(instruction="Be a pirate.")
    with pytest.raises(Problem, match="two system prompts that differ: 'system', 'system_prompt' beside the conversation$"):
        row(system="a", system_prompt="b")


@pytest.mark.parametrize("name", MEDIA)
def test_rows_with_media_are_refused_and_empty_columns_are_not(name):
    for empty in (None, [], "", "[]", {}):
        assert row(**{name: empty}).messages == [ASK, SAY]
    with pytest.raises(Problem, match=f"images, videos and sound cannot be captured: the row has '{name}'"):
        row(**{name: ["cat.jpg"]})


def test_other_keys_of_a_row_carry_no_meaning():
    beside = {"id": 3, "source": "x", "score": 0.5, "category": "<image>", "prompt": "Hi", "label": False, "chat_template_kwargs": {}}
    assert row(**beside) == row()
    with pytest.raises(Problem, match=r"chat_template_kwargs are not handed to the template here: the row has \['enable_thinking'\]"):
        row(chat_template_kwargs={"enable_thinking": True})


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ("ua", [1]),
        ("aua", [2]),
        ("saua", [3]),
        ("aauaua", [3, 5]),
        ("uatau", [1, 3]),
        ("sa", "no user turn before the last answer"),
        ("au", "no user turn before the last answer"),
        ("u", "no assistant turn"),
        ("uaa", "two answers in a row, and no server is asked for the second: message 2 follows message 1"),
        ("un", "no assistant turn is to be learned: every weight is 0"),
        ("una", "two answers in a row, and no server is asked for the second: message 2 follows message 1"),
        ("uaun", [1]),
    ],
)
def test_which_turns_are_learned(turns, expected):
    roles = {"u": "user", "a": "assistant", "n": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": roles[turn], "content": "x", **({"weight": 0} if turn == "n" else {})} for turn in turns]
    if isinstance(expected, list):
        assert assistant_turns(messages) == expected
    else:
        with pytest.raises(BadRow, match=f"^{expected}"):
            assistant_turns(messages)
