"""Which answer becomes the picture, and what is told of it; and of which commit an evaluation is."""

import subprocess
from types import SimpleNamespace

import torch
from transformers import AutoTokenizer

from torchspec.acceptance.walk import Acceptance
from torchspec.decode.sequence import Answer, Difference
from torchspec.evaluate.decoded import Decoded, decode_results
from torchspec.evaluate.made_here import commit
from torchspec.evaluate.picture import MOST_TOKENS, _beginning, picture, usual
from torchspec.records import Prompt

PROMPT = Prompt(0, torch.arange(5, 11), torch.arange(6) > 2)
TIE = Difference(3, 0.0, tie=True)


def decoded(plain: float, speculative: float, difference: Difference | None = None) -> Decoded:
    """Five tokens in so many seconds."""
    sides = [Answer(list(range(5)), [2, 1], [3, 3], [], [0.0] * 4 + [seconds], seconds) for seconds in (plain, speculative)]
    return Decoded(PROMPT, *sides, difference, sampled=False)


def test_the_answer_shown_is_neither_the_best_nor_a_tie():
    best, middle, worst = decoded(3.0, 1.0), decoded(2.0, 1.0), decoded(1.0, 1.0)
    assert usual([best, middle, worst]) is middle
    tie = decoded(2.0, 1.0, TIE)
    assert usual([best, tie, worst, worst]) is worst  # nearest to the median of 1.5 among those that are identical
    assert usual([tie]) is tie


def test_answers_of_a_batch_have_no_picture():
    batch = Decoded(PROMPT, Answer([1, 2, 3], seconds=1.0), Answer([1, 2, 3], seconds=1.0), None, sampled=False)
    assert picture(None, []) is None and picture(None, [batch]) is None


def test_of_a_long_answer_the_beginning_is_told_with_its_times(small_folder):
    tokenizer = AutoTokenizer.from_pretrained(small_folder)
    ids = tokenizer("one two three " * MOST_TOKENS).input_ids[: 2 * MOST_TOKENS]
    times, drafted = [i / 10 for i in range(len(ids))], [i % 2 == 0 for i in range(len(ids))]
    told = _beginning(tokenizer, Answer(ids, from_draft=drafted, times=times))
    assert "".join(text for text, _ in told["pieces"]) == tokenizer.decode(ids[:MOST_TOKENS])
    assert [source for _, source in told["pieces"]][:3] == ["draft", "target", "draft"] and told["seconds"] == times[:MOST_TOKENS]
    assert {source for _, source in _beginning(tokenizer, Answer(ids, times=times))["pieces"]} == {"plain"}


def test_decoded_results_hold_the_walk_over_the_same_prompts_and_no_second_break_even():
    walked = Acceptance(4).add_answer([2, 0], 5)
    results = decode_results(SimpleNamespace(method=SimpleNamespace(block_size=4)), [decoded(3.0, 1.5), decoded(1.0, 1.0)], walked)
    assert results["offline_tau"] == walked.tau == 2.0 and results["speedup"] == 1.5
    assert "break_even_tau" not in results


def test_the_commit_is_that_of_a_checkout_and_says_when_files_differ(tmp_path):
    assert commit(tmp_path) is None  # an installed package lies in no checkout

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert head.startswith(commit(tmp_path)) and len(commit(tmp_path)) >= 10
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path).endswith("-dirty")
