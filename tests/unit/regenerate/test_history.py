"""What the next turn sees of an answer. Oracle: the texts that servers render, written out by hand for the field's templates."""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from torchspec.chat.format import ChatFormat
from torchspec.regenerate.history import CALLED, IN_A_THOUGHT, UNKNOWN, parse_answer

TEMPLATES = Path(__file__).parents[2] / "fixtures" / "templates"
SPECIAL = {
    "gpt": ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"],
    "deepseek": ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>"],
    "llama": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"],
}
STOP = {"gpt": ["<|return|>", "<|call|>"], "deepseek": ["<｜end▁of▁sentence｜>"], "llama": ["<|eot_id|>", "<|eom_id|>"]}
HI, AGAIN = {"role": "user", "content": "Hi."}, {"role": "user", "content": "Again?"}
OSS = "<|start|>system<|message|>Reasoning: medium<|end|><|start|>user<|message|>Hi.<|end|><|start|>assistant"
OSS_AGAIN = "<|start|>user<|message|>Again?<|end|><|start|>assistant"
OSS_FINAL = "<|start|>assistant<|channel|>final<|message|>"
QWEN = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
QWEN_AGAIN = "<|im_end|>\n<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n"
R1, R1_AGAIN = "<｜begin▁of▁sentence｜><｜User｜>Hi.<｜Assistant｜>", "<｜end▁of▁sentence｜><｜User｜>Again?<｜Assistant｜>"


@pytest.fixture
def chat_format(small_folder):
    def build(name: str, thinking: bool | None, special: list[str] = ()) -> ChatFormat:
        family = re.match("[a-z]+", name)[0]
        tokenizer = AutoTokenizer.from_pretrained(small_folder)
        tokenizer.add_tokens([*SPECIAL.get(family, []), *special], special_tokens=True)
        tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
        return ChatFormat(tokenizer, thinking, False, frozenset(tokenizer.convert_tokens_to_ids(STOP.get(family, ["<|im_end|>"]))))

    return build


def parsed(chat: ChatFormat, written: str):
    prompt = chat.render([HI], add_generation_prompt=True)
    return prompt, parse_answer(chat, prompt, chat.tokenizer(written, add_special_tokens=False).input_ids)


THOUGHT = "<|channel|>analysis<|message|>A greeting.<|end|>"
CASES = {  # template, thinking mode, what the target wrote, the prompt of the next turn
    "no thoughts": ("chatml", None, "Hello!<|im_end|>", QWEN + "Hello!" + QWEN_AGAIN),
    "a mark inside an answer is text": ("qwen3", None, "Write </think>.<|im_end|>", QWEN + "Write </think>." + QWEN_AGAIN),
    "thoughts are dropped": ("qwen3", True, "<think>\nA greeting.\n</think>\n\nHello!<|im_end|>", QWEN + "Hello!" + QWEN_AGAIN),
    "an empty thought": ("qwen3", True, "<think>\n\n</think>\n\nHello!<|im_end|>", QWEN + "Hello!" + QWEN_AGAIN),
    "mode off": ("qwen3", False, "Hello!<|im_end|>", QWEN + "Hello!" + QWEN_AGAIN + "<think>\n\n</think>\n\n"),
    "cut by the cap": ("qwen3", True, "<think>\nA.\n</think>\n\nHello", QWEN + "Hello" + QWEN_AGAIN),
    "opened by the prompt": (
        "deepseek-r1", None, "A greeting.\n</think>\n\nHello!<｜end▁of▁sentence｜>", R1 + "Hello!" + R1_AGAIN + "<think>\n",
    ),
    "closed in the history": (
        "deepseek-v3.1", True, "A greeting.</think>Hello!<｜end▁of▁sentence｜>", R1 + "</think>Hello!" + R1_AGAIN + "<think>",
    ),
    "channels": (
        "gpt-oss", None, f"{THOUGHT}{OSS_FINAL}Hello!<|return|>", f"{OSS}<|channel|>final<|message|>Hello!<|end|>{OSS_AGAIN}",
    ),
    "one channel": (
        "gpt-oss", None, "<|channel|>final<|message|>Hello!<|return|>", f"{OSS}<|channel|>final<|message|>Hello!<|end|>{OSS_AGAIN}",
    ),
    "a preamble is part of the answer": (
        "gpt-oss", None, f"{THOUGHT}<|start|>assistant<|channel|>commentary<|message|>Well.<|end|>{OSS_FINAL}Hello!<|return|>",
        f"{OSS}<|channel|>final<|message|>Well.\nHello!<|end|>{OSS_AGAIN}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_history_is_what_the_server_puts_there(chat_format, case):
    template, thinking, written, following = CASES[case]
    chat = chat_format(template, thinking)
    _, answer = parsed(chat, written)
    assert answer.ended is None
    assert chat.render([HI, answer.message, AGAIN], add_generation_prompt=True) == following


@pytest.mark.parametrize(
    ("template", "thinking", "written"),
    [
        ("chatml", None, "Hello!<|im_end|>"),
        ("qwen3", True, "<think>\nA greeting.\nWell.\n</think>\n\nHello!<|im_end|>"),
        ("qwen3", False, "Hello!<|im_end|>"),
        ("gpt-oss", None, f"{THOUGHT}{OSS_FINAL}Hello!<|return|>"),
        ("llama-3.1", None, "Hello!<|eot_id|>"),
    ],
)
def test_where_a_template_shows_the_last_thought_the_message_renders_to_what_was_written(chat_format, template, thinking, written):
    chat = chat_format(template, thinking)
    prompt, answer = parsed(chat, written)
    assert chat.render([HI, answer.message], add_generation_prompt=False).rstrip() == prompt + written


@pytest.mark.parametrize(
    ("marks", "thought"),
    [
        (("[THINK]", "[/THINK]"), "A greeting."),
        (("<seed:think>", "</seed:think>"), "A greeting."),
        (("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"), "A greeting."),
        (("<|channel>thought\n", "<channel|>"), "A greeting."),
    ],
)
def test_marks_of_other_families(chat_format, marks, thought):
    chat = chat_format("chatml", None, special=re.findall(r"<\|?[\w|]+>|\[/?THINK\]", "".join(marks)))
    _, answer = parsed(chat, f"{marks[0]}{thought}{marks[1]}Hello!<|im_end|>")
    assert answer.message == {"role": "assistant", "content": "Hello!", "reasoning_content": thought} and answer.ended is None


@pytest.mark.parametrize(
    ("template", "written", "ended", "content"),
    [
        ("qwen3", "<think>\nA greeting", IN_A_THOUGHT, ""),
        ("qwen3", "<think>\nA greeting.<|im_end|>", IN_A_THOUGHT, ""),
        ("deepseek-r1", "A greeting", IN_A_THOUGHT, ""),
        ("gpt-oss", "<|channel|>analysis<|message|>A greeting", IN_A_THOUGHT, ""),
        ("gpt-oss", f"{THOUGHT}<|start|>assistant", IN_A_THOUGHT, ""),
        ("gpt-oss", f'{THOUGHT}<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{{"a": 1}}<|call|>', CALLED, ""),
        ("gpt-oss", '<|channel|>commentary to=functions.f <|message|>{"a": 1}<|call|>', CALLED, ""),
        ("qwen3", 'Wait.<tool_call>\n{"name": "f"}\n</tool_call><|im_end|>', CALLED, 'Wait.<tool_call>\n{"name": "f"}\n</tool_call>'),
        ("llama-3.1", "<|python_tag|>f()<|eom_id|>", CALLED, "<|python_tag|>f()"),
        ("llama-3.1", '{"name": "f"}<|eom_id|>', CALLED, '{"name": "f"}'),
        ("chatml", "Hello<|im_start|>!<|im_end|>", f"{UNKNOWN}: <|im_start|>", "Hello<|im_start|>!"),
    ],
)
def test_answers_that_nothing_can_follow(chat_format, template, written, ended, content):
    _, answer = parsed(chat_format(template, None), written)
    assert (answer.ended, answer.message["content"]) == (ended, content)
