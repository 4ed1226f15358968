"""Oracle: every text tokenized whole and alone, the plain way that takes the square of the turns."""

import random
from dataclasses import replace

import pytest

from tests.unit.chats import TEMPLATES
from torchspec.chat.clock import with_fixed_day
from torchspec.chat.format import ChatFormat
from torchspec.chat.pieces import Piece
from torchspec.chat.turns import TurnText
from torchspec.rows.conversation import BadRow

PARTS = ["Yes", " ", "\n", "\n\n", "é", "日本", "🙂", "x=1;", "\t", "the", "<|im_start|>", "<|im", "_start|>", "a"]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


def alone(turn: TurnText) -> TurnText:
    return replace(turn, prompt=Piece("", 0, turn.prompt.text), full=Piece("", 0, turn.full.text))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "broken"])
def test_cut_turns_are_the_turns_tokenized_alone(chat_format, name):
    chat, rng = chat_format(name), random.Random(name)
    for _ in range(10):
        text = ["a" + "".join(rng.choices(PARTS, k=6)) + "b" for _ in range(8)]
        texts = chat.texts([say(t) for say, t in zip([user, assistant] * 4, text, strict=True)])
        plain = [alone(turn) for turn in texts]
        for turn in texts:
            for piece, ids in chat._pieces([turn.prompt, turn.full]).items():
                assert ids.list() == chat.tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        assert chat.encode(texts) == chat.encode(plain)


def test_a_special_token_after_the_common_text_is_not_taken_from_the_whole(chat_format):
    """The piece ends within what is a special token of the whole."""
    chat = chat_format("chatml")
    whole = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    pieces = [Piece.of(whole, whole[:end] + tail) for end in range(len(whole) + 1) for tail in ("", "x", "<|im_end|>", "|>")]
    for piece, ids in chat._pieces(pieces).items():
        assert ids.list() == chat.tokenizer(piece.text, add_special_tokens=False)["input_ids"]


def with_ends(chat: ChatFormat, *ends: str) -> ChatFormat:
    return replace(chat, stop_ids=frozenset(chat.tokenizer.convert_tokens_to_ids(list(ends))))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (assistant("With <|im_end|> and a line."), "an answer quotes a token that ends a turn: message 1 goes on after '<|im_end|>'"),
        (assistant("half \ud83d"), "half a character"),
        (assistant("Look.", function_call={"name": "temp", "arguments": "{}"}), "leaves out tool calls: message 1 calls 'temp'"),
    ],
)
def test_what_the_answer_loses_rejects_the_row(chat_format, message, reason):
    with pytest.raises(BadRow, match=reason.replace("|", r"\|")):
        with_ends(chat_format("chatml"), "<|im_end|>").texts([user("Hi"), message])


def test_an_answer_that_ends_with_its_own_end_token_is_itself(chat_format):
    chat = with_ends(chat_format("chatml"), "<|im_end|>")
    (sample,) = chat.encode(chat.texts([user("Hi"), assistant("Hello.<|im_end|>")]))
    ((start, end),) = sample.spans()
    assert chat.tokenizer.decode(sample.ids[start:end]) == "Hello.<|im_end|>"


def test_templates_print_one_day(chat_format):
    chat = chat_format("chatml")
    template = chat.tokenizer.chat_template
    try:
        chat.tokenizer.chat_template = "{{ strftime_now('%d %b %Y, %Y-%m-%d') }}\n" + template
        assert chat.render([user("Hi")], add_generation_prompt=False).startswith("26 Jul 2024, 2024-07-26")
    finally:
        chat.tokenizer.chat_template = template
    assert with_fixed_day(template) == template


def templated(chat: ChatFormat, template: str, monkeypatch, *ends: str) -> ChatFormat:
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    return with_ends(chat, *ends)


def test_an_answer_ends_with_the_token_that_opens_the_next_message(chat_format, monkeypatch):
    """As in GLM-4: <|im_start|> opens the user's turns and stops the engine. Nothing follows the last answer, which has no end."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|im_end|>' }}\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_end|>\n{% endif %}"
    )
    chat = templated(chat_format("chatml"), template, monkeypatch, "<|im_start|>")
    (sample,) = chat.encode(chat.texts([user("Hi"), assistant("Hello."), user("Bye"), assistant("So long.")]))
    assert [chat.tokenizer.decode(sample.ids[start:end]) for start, end in sample.spans()] == ["Hello.<|im_start|>", "So long."]


LOSSES = {
    "leaves out text beside tool calls: message 1": (
        "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}",
        assistant("I look it up.", tool_calls=[{"type": "function", "function": {"name": "temp", "arguments": {}}}]),
    ),
    "leaves out thoughts inside content: message 1": (
        "{{ m.content.split('</think>')[-1] }}",
        assistant("<think>A greeting.</think>Hello."),
    ),
    "leaves out content: message 1": ("{{ m.content[:5] }}", assistant("Hello there.")),
    "leaves out arguments of tool calls: message 1 calls 'temp'": (
        "{{ m.tool_calls[0].function.name if m.tool_calls else m.content }}",
        assistant("", tool_calls=[{"type": "function", "function": {"name": "temp", "arguments": {"city": "Oslo"}}}]),
    ),
}


@pytest.mark.parametrize("reason", LOSSES)
def test_what_a_template_leaves_out_is_named(chat_format, monkeypatch, reason):
    body, message = LOSSES[reason]
    start = "<|im_start|>{{ m.role }}\n"
    template = (
        "{% for m in messages %}"
        + start
        + body
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(BadRow, match=reason):
        templated(chat_format("chatml"), template, monkeypatch, "<|im_end|>").texts([user("Hi"), message])


def test_whatever_a_template_raises_rejects_the_row(chat_format, monkeypatch):
    for code in ("messages[9].content", "messages[0].content.x.y", "1 // 0", "messages[0].content + 1", "raise_exception('no')"):
        chat = templated(chat_format("chatml"), "{{ " + code + " }}", monkeypatch, "<|im_end|>")
        with pytest.raises(BadRow, match="the chat template refuses the conversation: "):
            chat.texts([user("Hi"), assistant("Hello.")])
