"""What later turns see of an answer: the message that a chat client holds after the server's parsers have read the target's tokens.

    written  <think>\\nA greeting.\\n</think>\\n\\nHello!<|im_end|>
    message  {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."}

The template then keeps or drops the thoughts, as it does in the server. Servers are taken to run with the reasoning parser of their
model and without tools.
"""

import re
from dataclasses import dataclass

from torchspec.chat.format import ChatFormat

THOUGHTS = (  # around thoughts, as vLLM's and SGLang's reasoning parsers know them
    ("<think>", "</think>"),  # Qwen, DeepSeek, GLM, Kimi K2, MiniMax, Nemotron, Hunyuan, Ernie, Olmo, Step
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("◁think▷", "◁/think▷"),  # Kimi VL
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
AROUND_ANSWERS = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|begin_of_solution|>", "<|end_of_solution|>")
CALLS = (
    "<tool_call>", "<|tool_call|>", "<|tool_call>", "<|tool_call_start|>", "<|tool_call_begin|>", "<seed:tool_call>",
    "<minimax:tool_call>", "<longcat_tool_call>", "<start_function_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|START_ACTION|>",
    "<|action_start|>", "<|tool_calls_section_begin|>", "<｜tool▁calls▁begin｜>", "<｜DSML｜function_calls>", "<|eom_id|>",
)  # fmt: skip
START, CHANNEL, TEXT, END = "<|start|>", "<|channel|>", "<|message|>", re.compile(r"<\|(end|return|call)\|>")  # harmony, of gpt-oss

IN_A_THOUGHT = "the answer ends before its thought does; a larger --max-new-tokens may help"
CALLED = "the answer calls a tool, whose result nobody can give here"
UNKNOWN = "the answer holds a control token that no parser here knows"


@dataclass(frozen=True)
class Parsed:
    message: dict  # the assistant turn of the history
    ended: str | None = None  # why no turn can follow


def parse_answer(chat: ChatFormat, prompt: str, response: list[int]) -> Parsed:
    """prompt: the rendered text that the answer continues, which may have opened a thought."""
    vocabulary = chat.tokenizer.get_added_vocab()
    if CHANNEL in vocabulary and TEXT in vocabulary:
        return _channels(chat.tokenizer.decode(response))
    text = chat.tokenizer.decode(response[:-1] if response[-1] in chat.stop_ids else response)
    thought, text = _thought(prompt, text)
    if text is None:
        return Parsed(_message("", thought), IN_A_THOUGHT)
    for mark in AROUND_ANSWERS:
        text = text.replace(mark, "")
    if any(mark in text for mark in CALLS) or chat.tokenizer.decode(response[-1:]) in CALLS:
        return Parsed(_message(text, thought), CALLED)
    unknown = [token.content for token in chat.tokenizer.added_tokens_decoder.values() if token.special and token.content in text]
    return Parsed(_message(text, thought), f"{UNKNOWN}: {unknown[0]}" if unknown else None)


def _thought(prompt: str, text: str) -> tuple[str, str | None]:
    """-> thought, answer; no answer where the thought is not closed. Line breaks at the marks belong to the template."""
    for start, end in THOUGHTS:
        if prompt.rstrip().endswith(start) or text.lstrip().startswith(start):
            thought, closed, answer = text.lstrip().removeprefix(start).partition(end)
            return thought.strip("\n"), answer.lstrip("\n") if closed else None
    return "", text


def _channels(text: str) -> Parsed:
    """Harmony: <|channel|>analysis<|message|>thought<|end|><|start|>assistant<|channel|>final<|message|>answer<|return|>"""
    thoughts, answers, called = [], [], False
    for part in text.split(START):
        head, _, body = part.partition(TEXT)
        body, channel = END.split(body)[0], head.partition(CHANNEL)[2]
        if " to=" in f" {head}":
            called = True
        elif channel.startswith("analysis"):
            thoughts.append(body)
        elif channel.startswith(("final", "commentary")):  # a preamble in commentary is shown to the user, as vLLM does
            answers.append(body)
    message = _message("\n".join(answers), "\n".join(thoughts))
    return Parsed(message, CALLED if called else None if message["content"] else IN_A_THOUGHT)


def _message(content: str, thought: str) -> dict:
    reasoning = {"reasoning_content": thought} if thought else {}
    return {"role": "assistant", "content": content, **reasoning}
