"""llama.cpp serves what its converter makes of our folder: its speculative answers are its plain ones, and it accepts what our own walk
over its text says."""

import pytest

from tests.interop.conftest import ROOT
from tests.interop.served import check_accepted, check_texts
from torchspec.decode.sequence import stop_ids
from torchspec.files.kept import Kept
from torchspec.serve.measure import measure_served
from torchspec.serve.options import Serving
from torchspec.serve.side import Asked

LLAMACPP = ROOT / ".interop" / "llamacpp"
pytestmark = pytest.mark.parametrize("method", ["dflash", "eagle3", "dspark", "dflash2"], indirect=True)
PROMPTS, TOKENS = 4, 32  # its bfloat16 is slow on a CPU: some hundred steps, each compared
ALONE = 1  # with several sequences at a time it drafts EAGLE-3 tokens that it does not draft alone, of the same texts
ONE_THREAD = "--threads 1"  # several that spin for each other would crawl on a machine that others use as well


@pytest.fixture(scope="session")
def served(pair, method, conversations, tmp_path_factory) -> dict:
    folder = tmp_path_factory.getbasetemp() / "llamacpp"  # the target is converted once for all methods
    folder.mkdir(exist_ok=True)
    serving = Serving("llamacpp", llamacpp=str(LLAMACPP), arguments=ONE_THREAD)
    asked = Asked(conversations[:PROMPTS], TOKENS, 0.0, 0, tuple(stop_ids(pair.target)))
    return measure_served(pair, asked, [ALONE], serving, Kept(folder / f"{method}.jsonl", {}), folder / method)


def test_llamacpp_speculative_text_is_its_plain_text_up_to_ties(served, method):
    check_texts("llama.cpp", method, served)


def test_llamacpp_accepts_what_we_say_it_will(served, method):
    check_accepted("llama.cpp", method, served)
