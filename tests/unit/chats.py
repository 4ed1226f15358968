"""Chat templates in the styles of the field, on the real tokenizer's first tokens."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from torchspec.chat.format import ChatFormat

CHATML = """
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""

LLAMA3 = """
{{- '<|begin|>' -}}
{%- for m in messages -%}
<|header|>{{ m.role }}<|/header|>

{{ m.content | trim }}<|eot|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|header|>assistant<|/header|>

{% endif -%}
"""

GEMMA = """
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}
"""

QWEN3 = """
{%- set ns = namespace(last_user=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.index0 > ns.last_user -%}
{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + m.content }}
{%- else -%}{{ m.content }}{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}
"""

PLAIN = """
{%- for m in messages -%}
{{ m.role.title() }}: {{ m.content }}
{% endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant: ' }}{%- endif -%}
"""

# Closes the whole text with a second special token, which no target ever writes.
PHI3 = """
{%- for m in messages -%}
<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|assistant|>
{% else -%}<|endoftext|>{%- endif -%}
"""

# A generation prompt that no answer in the history starts with.
BROKEN = CHATML.replace("{%- if add_generation_prompt -%}<|im_start|>assistant", "{%- if add_generation_prompt -%}<|im_start|>bot")

TEMPLATES = {  # name -> template, special tokens to add
    "chatml": (CHATML, []),
    "llama3": (LLAMA3, ["<|begin|>", "<|header|>", "<|/header|>", "<|eot|>"]),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "qwen3": (QWEN3, []),
    "plain": (PLAIN, []),
    "broken": (BROKEN, []),
    "phi3": (PHI3, ["<|user|>", "<|assistant|>", "<|end|>"]),
}


@pytest.fixture(scope="session")
def chat_format(small_folder):
    """chat_format(name, thinking, last_turn_only) -> ChatFormat"""

    @cache
    def tokenizer(name: str):
        template, special = TEMPLATES[name]
        tokenizer = AutoTokenizer.from_pretrained(small_folder)
        tokenizer.add_tokens(special, special_tokens=True)
        tokenizer.chat_template = template
        return tokenizer

    def build(name: str, thinking: bool | None = None, last_turn_only: bool = False) -> ChatFormat:
        stop = [tokenizer(name).convert_tokens_to_ids("<|end|>")] if name == "phi3" else []
        return ChatFormat(tokenizer(name), thinking, last_turn_only, frozenset(stop))

    return build


@pytest.fixture
def other_target(small_folder, tmp_path) -> Path:
    """The same tokenizer under another chat template."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in small_folder.iterdir():
        if file.suffix == ".json":
            os.symlink(file.resolve(), folder / file.name)
    (folder / "chat_template.jinja").write_text(LLAMA3)
    return folder


@pytest.fixture
def write_jsonl(tmp_path):
    """write_jsonl(name, rows) -> path; a row is an object or a raw line."""

    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write
