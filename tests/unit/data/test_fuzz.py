"""Oracle: conservation. Of any record, of any shape, exactly one thing comes: samples, or one reason in one bounded sentence.

FUZZ=6000 .venv/bin/python -m pytest tests/unit/data/test_fuzz.py    # minutes of it, with new examples every time
"""

import io
import json
import os
from datetime import datetime
from decimal import Decimal
from functools import cache

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.unit.chat.test_templates import SPECIAL, STOP, TEMPLATES
from torchspec.chat.format import ChatFormat
from torchspec.data.encode import Encoder
from torchspec.rows.collect import _usable
from torchspec.rows.keys import INSTRUCTION, MEDIA, SYSTEM, UNCLEAR, WEIGHTS
from torchspec.rows.ledger import Ledger
from torchspec.rows.messages import REASONING, ROLES
from torchspec.rows.sources import _row

EXAMPLES = int(os.environ.get("FUZZ", 60))
FORMATS = {"qwen": "qwen3", "gpt": "gpt-oss", "llama": "llama-3.1", "chatml": "chatml", "deepseek": "deepseek-v3.1"}  # family -> template
LONGEST_REASON = 600

WORDS = [
    "Hi", " ", "<image>", "<think>\n", "</think>", "<|im_end|>", "<|eot_id|>", "a\u2028b", "{}", "[]", "[1]", '{"x": null}',
    '["\\ud83d"]', "x" * 3000,
]  # fmt: skip
texts = st.text(max_size=20) | st.sampled_from(WORDS)
torn = texts | st.text(st.characters(exclude_categories=()), max_size=20)  # JSON can write half of a surrogate pair, a table cannot
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**40)
json_leaves = leaves | torn
table_leaves = leaves | texts | st.just(datetime(2025, 1, 1)) | st.just(b"\xff") | st.just(Decimal("0.5"))


def values(leaf: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)


def mostly(good: st.SearchStrategy, leaf: st.SearchStrategy) -> st.SearchStrategy:
    """Three of four are sound, or no row would get further than its first key."""
    return st.one_of(good, good, good, values(leaf))


def records(leaf: st.SearchStrategy, texts: st.SearchStrategy) -> st.SearchStrategy:
    function = st.fixed_dictionaries(
        {"name": mostly(st.sampled_from(["f", "weather"]), leaf)},
        optional={"arguments": mostly(st.just({"x": 1}) | st.just('{"x": null}'), leaf), "parameters": mostly(st.just({}), leaf)},
    )
    calls = st.lists(mostly(st.fixed_dictionaries({"function": mostly(function, leaf)}), leaf), max_size=2)
    parts = st.lists(mostly(st.fixed_dictionaries({"type": mostly(st.just("text"), leaf), "text": mostly(texts, leaf)}), leaf), max_size=2)
    beside = {
        **dict.fromkeys(("tool_calls", "tools"), mostly(calls, leaf)),
        **dict.fromkeys(("function_call",), mostly(function, leaf)),
        **dict.fromkeys((*REASONING, "name", "tool_call_id"), mostly(texts, leaf)),
        **dict.fromkeys((*WEIGHTS, "masked", *UNCLEAR[:3], *MEDIA[:3]), mostly(st.sampled_from([None, 0, 1, []]), leaf)),
    }
    extra = st.sampled_from(sorted(beside)).flatmap(lambda key: beside[key].map(lambda value: {key: value})) | st.just({})
    roles = mostly(st.sampled_from(list(ROLES)), leaf)
    message = st.builds(
        lambda keys, role, content, more: {keys[0]: role, keys[1]: content, **more},
        st.sampled_from([("role", "content"), ("from", "value")]), roles, mostly(texts | parts, leaf), extra,
    )  # fmt: skip
    talk = st.lists(texts.filter(str.strip), min_size=2, max_size=5).map(
        lambda said: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    )
    messages = mostly(
        st.one_of(talk, talk, st.lists(mostly(message, leaf), max_size=5), st.builds(list.__add__, talk, st.lists(message, max_size=3))),
        leaf,
    )
    ids = mostly(st.lists(st.integers(0, 60_000), min_size=1, max_size=9), leaf)
    forms = st.one_of(
        messages.map(lambda value: {"messages": value}),
        messages.map(lambda value: {"conversations": value}),
        mostly(st.lists(texts, max_size=4), leaf).map(lambda value: {"data": value}),
        st.fixed_dictionaries({"prompt_ids": ids, "response_ids": ids}, optional={"messages": messages, "tokenizer": mostly(texts, leaf)}),
        st.dictionaries(texts, values(leaf), max_size=3),
    )
    row_keys = (*SYSTEM, *INSTRUCTION, *WEIGHTS, *MEDIA, "tools", "functions", "chat_template_kwargs", "id")
    more = st.dictionaries(st.sampled_from(row_keys), mostly(calls, leaf) | mostly(texts, leaf), max_size=1)
    return st.builds(lambda form, more: {**more, **form}, forms, more | st.just({}))


@pytest.fixture(scope="module")
def encoder(small_folder):
    @cache
    def encoder(family: str) -> Encoder:
        tokenizer = AutoTokenizer.from_pretrained(small_folder)
        tokenizer.add_tokens(SPECIAL[family], special_tokens=True)
        tokenizer.chat_template = (TEMPLATES / f"{FORMATS[family]}.jinja").read_text()
        chat = ChatFormat(tokenizer, None, False, frozenset(tokenizer.convert_tokens_to_ids(STOP[family])))
        return Encoder(chat, len(tokenizer), "0123456789abcdef")

    return encoder


def check(encoder: Encoder, raw: bytes | dict) -> None:
    row = _row("here:1", raw)
    (outcome,) = encoder([row])
    event(f"{len(outcome.samples)} samples" if outcome.samples else outcome.rejected.partition(": ")[0])
    assert (outcome.rejected is None) == bool(outcome.samples)
    if outcome.rejected is not None:
        what = outcome.rejected.partition(": ")[0]
        assert len(what.split()) > 1 and len(outcome.rejected) <= LONGEST_REASON, outcome.rejected
    for sample in outcome.samples:
        assert len(sample.ids) == len(sample.loss_mask) and sample.loss_mask.any() and not sample.loss_mask.all()
    ledger = Ledger(io.StringIO())
    assert len(list(_usable(iter([row]), ledger))) + ledger.rejected.total() == ledger.rows == 1


how = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="FUZZ" not in os.environ, database=None, suppress_health_check=list(HealthCheck)
)


@how
@given(st.sampled_from(list(FORMATS)), records(json_leaves, torn))
def test_every_line_of_json_is_samples_or_one_reason(encoder, family, record):
    check(encoder(family), json.dumps(record).encode())


@how
@given(st.sampled_from(list(FORMATS)), records(table_leaves, texts))
def test_every_record_of_a_table_is_samples_or_one_reason(encoder, family, record):
    check(encoder(family), record)


@how
@given(st.binary(max_size=60) | values(json_leaves).map(lambda value: json.dumps(value).encode()))
def test_every_line_of_bytes_is_one_reason(encoder, line):
    check(encoder("qwen"), line)
