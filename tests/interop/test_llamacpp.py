"""llama.cpp serves what its converter makes of our folder: its speculative answers are its plain ones, and it accepts what our own walk
over its text says."""

import pytest

from tests.interop.conftest import ROOT
from tests.interop.served import check_accepted, check_texts, measured
from torchspec.serve.options import Serving

LLAMACPP = ROOT / ".interop" / "llamacpp"
pytestmark = pytest.mark.parametrize("method", ["dflash", "eagle3", "dspark", "dflash2"], indirect=True)
PROMPTS, TOKENS = 4, 32  # each step is compared
ALONE = 1  # with several sequences at a time it drafts EAGLE-3 tokens that it does not draft alone, of the same texts
ONE_THREAD = "--threads 1"  # several that spin for each other would crawl on a machine that others use as well


@pytest.fixture(scope="module")
def served(pair, method, conversations, folder, plain) -> dict:
    serving = Serving("llamacpp", llamacpp=str(LLAMACPP), arguments=ONE_THREAD)
    return measured(pair, conversations[:PROMPTS], TOKENS, ALONE, serving, folder / method, plain)


def test_llamacpp_speculative_text_is_its_plain_text_up_to_ties(served, method):
    check_texts("llama.cpp", method, served)


def test_llamacpp_accepts_what_we_say_it_will(served, method):
    check_accepted("llama.cpp", method, served)
