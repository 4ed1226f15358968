"""Loss masks of the field's chat formats. Oracle: the text that a server would see, written out by hand, supervised parts in ⟦ ⟧.

Every answer must follow exactly the text before its brackets. A template that rewrites its history has one text per answer.
"""

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from torchspec.chat.format import BadRow, ChatFormat
from torchspec.chat.turns import Encoded
from torchspec.data.encode import encoded_row, rendered
from torchspec.rows.formats import Row, to_row

TEMPLATES = Path(__file__).parents[2] / "fixtures" / "templates"
SPECIAL = {  # family -> special tokens that its tokenizer has
    "llama": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "gpt": ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"],
    "deepseek": ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
    "chatml": [],
    "qwen": [],
}
STOP = {
    "llama": ["<|eot_id|>", "<|eom_id|>"],
    "gemma": ["<end_of_turn>"],
    "gpt": ["<|return|>", "<|call|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "chatml": ["<|im_end|>"],
    "qwen": ["<|im_end|>"],
}


@pytest.fixture
def chat_format(small_folder):
    def build(name: str, thinking: bool | None = None) -> ChatFormat:
        family = re.match("[a-z]+", name)[0]
        tokenizer = AutoTokenizer.from_pretrained(small_folder)
        tokenizer.add_tokens(SPECIAL[family], special_tokens=True)
        tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
        return ChatFormat(tokenizer, thinking, False, frozenset(tokenizer.convert_tokens_to_ids(STOP[family])))

    return build


def marked(text: str) -> list[tuple[str, str]]:
    """(text before, supervised text) of every ⟦ ⟧."""
    return [(re.sub("[⟦⟧]", "", text[: m.start()]), m[1]) for m in re.finditer("⟦(.*?)⟧", text, re.DOTALL)]


def supervised(chat: ChatFormat, samples: list[Encoded]) -> list[tuple[str, str]]:
    decode = chat.tokenizer.decode
    return [(decode(sample.ids[:start]), decode(sample.ids[start:end])) for sample in samples for start, end in sample.spans()]


SYSTEM = {"role": "system", "content": "Be brief."}
HI, HELLO = {"role": "user", "content": "Hi, you."}, {"role": "assistant", "content": "Hello!"}
SUM, FIVE = {"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "It is 5."}
HELLO_THOUGHT = {**HELLO, "reasoning_content": "A greeting."}
FIVE_THOUGHT = {**FIVE, "reasoning_content": "2+3 = 5."}
PLAIN, THOUGHT = [SYSTEM, HI, HELLO, SUM, FIVE], [SYSTEM, HI, HELLO_THOUGHT, SUM, FIVE_THOUGHT]
TOOL = {"type": "function", "function": {"name": "temp", "description": "Degrees.", "parameters": {"type": "object"}}}
TOOL_TEXT = '{"type": "function", "function": {"name": "temp", "description": "Degrees.", "parameters": {"type": "object"}}}'
CALL = {"id": "c1", "type": "function", "function": {"name": "temp", "arguments": '{"city": "Oslo"}'}}  # text, as OpenAI writes it
ASK, RESULT = {"role": "user", "content": "Oslo?"}, {"role": "tool", "tool_call_id": "c1", "content": "3"}
TOOLS = [SYSTEM, ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, {"role": "assistant", "content": "3 degrees."}]
TOOLS_THOUGHT = [*TOOLS[:2], {**TOOLS[2], "reasoning_content": "Look it up."}, RESULT, {**TOOLS[4], "thinking": "Cold."}]

LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
QWEN_TOOLS = f"<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n{TOOL_TEXT}\n</tools><|im_end|>\n"
QWEN_CALL = '<tool_call>\n{"name": "temp", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
QWEN_RESULT = "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
OSS = "<|start|>system<|message|>Reasoning: medium<|end|><|start|>developer<|message|># Instructions\n\nBe brief."
OSS_TOOLS = OSS + '\n\n# Tools\n\nnamespace functions {\n// Degrees.\ntype temp = (_: {"type": "object"}) => any;\n}<|end|>'
OSS_ASK = "<|start|>user<|message|>Oslo?<|end|>"
OSS_CALL = '<|start|>assistant to=functions.temp<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>'
OSS_THOUGHT = "<|channel|>analysis<|message|>Look it up.<|end|>"

CASES = {  # name -> template, thinking, messages, tools, texts
    "chatml": ("chatml", None, PLAIN, None, [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, you.<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
        "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n⟦It is 5.<|im_end|>⟧",
    ]),
    "llama": ("llama-3.1", None, PLAIN, None, [
        LLAMA.format("") + "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi, you.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello!<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\n2+3?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦It is 5.<|eot_id|>⟧",
    ]),
    "llama-tools": ("llama-3.1", None, TOOLS, [TOOL], [
        LLAMA.format("Environment: ipython\n") + "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"Answer with a JSON call of one of these functions.\n\n{TOOL_TEXT}\n\nOslo?<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n⟦{"name": "temp", "parameters": {"city": "Oslo"}}<|eot_id|>⟧'
        "<|start_header_id|>ipython<|end_header_id|>\n\n3<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦3 degrees.<|eot_id|>⟧",
    ]),
    "qwen2.5": ("qwen2.5", None, [HI, HELLO], None, [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi, you.<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧",
    ]),
    "qwen2.5-tools": ("qwen2.5", None, TOOLS, [TOOL], [
        QWEN_TOOLS + f"<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant\n⟦{QWEN_CALL}⟧\n{QWEN_RESULT}"
        "<|im_start|>assistant\n⟦3 degrees.<|im_end|>⟧",
    ]),
    "qwen3-thinking": ("qwen3", True, THOUGHT, None, [  # the second prompt has lost the first thought
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, you.<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nA greeting.\n</think>\n\nHello!<|im_end|>⟧",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, you.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n⟦<think>\n2+3 = 5.\n</think>\n\nIt is 5.<|im_end|>⟧",
    ]),
    "qwen3-no-thinking": ("qwen3", False, PLAIN, None, [  # the empty thought belongs to the prompt
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, you.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Hello!<|im_end|>⟧",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, you.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦It is 5.<|im_end|>⟧",
    ]),
    "qwen3-tools": ("qwen3", True, TOOLS_THOUGHT, [TOOL], [  # one user turn: its thoughts stay
        QWEN_TOOLS + f"<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant\n⟦<think>\nLook it up.\n</think>\n\n{QWEN_CALL}⟧\n"
        f"{QWEN_RESULT}<|im_start|>assistant\n⟦<think>\nCold.\n</think>\n\n3 degrees.<|im_end|>⟧",
    ]),
    "gemma": ("gemma", None, PLAIN, None, [
        "<bos><start_of_turn>user\nBe brief.\n\nHi, you.<end_of_turn>\n<start_of_turn>model\n⟦Hello!<end_of_turn>⟧\n"
        "<start_of_turn>user\n2+3?<end_of_turn>\n<start_of_turn>model\n⟦It is 5.<end_of_turn>⟧",
    ]),
    "gpt-oss": ("gpt-oss", None, THOUGHT, None, [  # history: no thought, <|end|> for <|return|>
        OSS + "<|end|><|start|>user<|message|>Hi, you.<|end|><|start|>assistant"
        "⟦<|channel|>analysis<|message|>A greeting.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>⟧",
        OSS + "<|end|><|start|>user<|message|>Hi, you.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|end|>"
        "<|start|>user<|message|>2+3?<|end|><|start|>assistant"
        "⟦<|channel|>analysis<|message|>2+3 = 5.<|end|><|start|>assistant<|channel|>final<|message|>It is 5.<|return|>⟧",
    ]),
    "gpt-oss-tools": ("gpt-oss", None, TOOLS_THOUGHT, [TOOL], [
        OSS_TOOLS + OSS_ASK + f"<|start|>assistant⟦{OSS_THOUGHT}{OSS_CALL}⟧"
        "<|start|>functions.temp to=assistant<|channel|>commentary<|message|>3<|end|><|start|>assistant"
        "⟦<|channel|>analysis<|message|>Cold.<|end|><|start|>assistant<|channel|>final<|message|>3 degrees.<|return|>⟧",
    ]),
    "deepseek-v3.1": ("deepseek-v3.1", False, PLAIN, None, [
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi, you.<｜Assistant｜></think>⟦Hello!<｜end▁of▁sentence｜>⟧"
        "<｜User｜>2+3?<｜Assistant｜></think>⟦It is 5.<｜end▁of▁sentence｜>⟧",
    ]),
}  # fmt: skip


def encoded(row: Row, chat) -> list:
    return encoded_row(row, rendered(row, chat), chat, len(chat.tokenizer), "")


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_answers_are_supervised(chat_format, name):
    template, thinking, messages, tools, texts = CASES[name]
    chat = chat_format(template, thinking)
    row = to_row("here:1", {"messages": messages, "tools": tools})
    samples = encoded(row, chat)
    assert supervised(chat, samples) == [pair for text in texts for pair in marked(text)]
    if len(texts) > 1:
        assert len(samples) == len(texts)


def test_every_shipped_template_is_tested():
    tested = {case[0] for case in CASES.values()} | {"deepseek-r1"}
    assert tested == {file.stem for file in TEMPLATES.glob("*.jinja")}


@pytest.mark.parametrize(
    ("template", "thinking", "messages", "tools", "reason"),
    [
        (
            "deepseek-r1",
            None,
            PLAIN,
            None,
            "renders an assistant turn differently from its generation prompt: message 2; the rows of `torch",
        ),
        ("deepseek-v3.1", True, THOUGHT, None, "renders an assistant turn differently from its generation prompt: message 2"),
        ("qwen3", False, THOUGHT, None, "renders an assistant turn differently from its generation prompt: message 2"),
        ("qwen2.5", None, THOUGHT, None, "leaves out reasoning_content: message 2"),
        ("chatml", None, PLAIN, [TOOL], "does not render tools: 'temp' is missing"),
        ("gemma", None, [HI, ASK, HELLO], None, "refuses the conversation: Conversation roles must alternate"),
        ("llama-3.1", None, [ASK, {**TOOLS[2], "tool_calls": [CALL, CALL]}], [TOOL], "refuses the conversation: This model only supports"),
        ("deepseek-v3.1", None, [ASK, {**TOOLS[2], "content": "x"}], None, "leaves out tool calls: message 1 calls 'temp'"),
    ],
)
def test_what_a_template_cannot_say_is_a_rejected_row_with_its_reason(chat_format, template, thinking, messages, tools, reason):
    chat = chat_format(template, thinking)
    row = to_row("here:1", {"messages": messages, "tools": tools})
    with pytest.raises(BadRow, match=reason):
        encoded(row, chat)


def test_token_rows_need_no_template(chat_format):
    """What regeneration writes for targets whose template hides the thought."""
    chat = chat_format("deepseek-r1")
    prompt, answer = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\n", "A greeting.\n</think>\n\nHello!<｜end▁of▁sentence｜>"
    ids = [chat.tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer)]
    samples = encoded(Row("here:1", prompt_ids=ids[0], response_ids=ids[1]), chat)
    assert supervised(chat, samples) == [(prompt, answer)]


def test_both_names_of_the_thinking_mode_reach_the_template(chat_format):
    ends = {mode: chat_format("deepseek-v3.1", mode).render([HI], add_generation_prompt=True)[-8:] for mode in (None, False, True)}
    assert ends == {None: "</think>", False: "</think>", True: "><think>"}
