"""vLLM serves our folder: its speculative answers are its plain answers, and it accepts what our own walk over its text says."""

import pytest

from tests.interop.conftest import ENGINES, MAX_NEW_TOKENS, environment
from tests.interop.served import check_accepted, check_texts, measured
from torchspec.serve.options import Serving

SMALL = "--enforce-eager --max-model-len 1024 --max-num-seqs 4"  # for two cores


@pytest.fixture(scope="module")
def served(pair, method, conversations, folder, plain) -> dict:
    serving = Serving("vllm", python=str(ENGINES["vllm"]), arguments=SMALL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment("vllm") | {"HOME": str(folder)}).items():
            patch.setenv(name, value)
        return measured(pair, conversations, MAX_NEW_TOKENS, 4, serving, folder / method, plain)


def test_vllm_speculative_text_is_its_plain_text_up_to_ties(served, method):
    check_texts("vLLM", method, served)


def test_vllm_accepts_what_we_say_it_will(served, method):
    check_accepted("vLLM", method, served)  # another engine's rounding; vLLM also counts drafts beyond the end of an answer
