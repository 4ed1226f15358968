"""Which answers are left out, judged by texts that everybody can judge."""

import pytest
from transformers import AutoTokenizer

from torchspec.doctor.tiny import write_tiny_target
from torchspec.errors import UserError
from torchspec.regenerate.drop import KEEP_ALL, Drop


@pytest.fixture(scope="module")
def reason(tmp_path_factory):
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_target(tmp_path_factory.mktemp("drop") / "target"))
    return lambda drop, text, finish="stop": drop.reason(tokenizer(text, add_special_tokens=False).input_ids, finish, tokenizer)


@pytest.mark.parametrize(
    ("scripts", "text", "other"),
    [
        (("latin",), "The angle α of a triangle is 30°, so the side Δx has a length of 4.", None),
        (("latin",), "Paris is the capital of France, and its river is called la Seine: größer, niño, façade.", None),
        (("latin",), "Париж — столица Франции.", "cyrillic"),
        (("latin",), "The answer is 巴黎是法国的首都。", "cjk"),
        (("cyrillic",), "Париж — столица Франции.", None),
        (("cjk", "hiragana", "katakana"), "パリはフランスの首都です。", None),
        (("cjk",), "パリはフランスの首都です。", "katakana"),
        (("latin",), "4 + 7 = 11", None),
    ],
)
def test_letters_of_another_script_are_found_and_a_few_are_allowed(reason, scripts, text, other):
    found = reason(Drop(scripts=scripts), text)
    assert found == (other and f"the answer is written in another script: {other}")


def test_cut_and_short_answers_go_where_that_is_asked(reason):
    assert reason(Drop(cut=True), "Yes", "length") == "the answer is cut at max_new_tokens" and reason(Drop(cut=True), "Yes") is None
    assert reason(Drop(shorter=4), "Yes") == "the answer is short: 3 tokens" and reason(Drop(shorter=3), "Yes") is None  # bytes
    assert reason(KEEP_ALL, "Да", "length") is None


def test_a_script_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="--script english is no script of Unicode's letters; give one as latin"):
        Drop(scripts=("latin", "english"))
