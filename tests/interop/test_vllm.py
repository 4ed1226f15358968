"""vLLM serves our folder: its speculative answers are its plain answers, and it accepts what our own walk over its text says."""

import pytest

from tests.interop.conftest import ENGINES, MAX_NEW_TOKENS, environment
from tests.interop.served import check_accepted, check_texts
from torchspec.decode.sequence import stop_ids
from torchspec.files.kept import Kept
from torchspec.serve.measure import measure_served
from torchspec.serve.options import Serving
from torchspec.serve.side import Asked

SMALL = "--enforce-eager --max-model-len 1024 --max-num-seqs 4"  # for two cores


@pytest.fixture(scope="session")
def served(pair, conversations, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("vllm")
    serving = Serving("vllm", python=str(ENGINES["vllm"]), arguments=SMALL)
    asked = Asked(conversations, MAX_NEW_TOKENS, 0.0, 0, tuple(stop_ids(pair.target)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment("vllm") | {"HOME": str(folder)}).items():
            patch.setenv(name, value)
        return measure_served(pair, asked, [4], serving, Kept(folder / "served.jsonl", {}), folder / "logs")


def test_vllm_speculative_text_is_its_plain_text_up_to_ties(served, method):
    check_texts("vLLM", method, served)


def test_vllm_accepts_what_we_say_it_will(served, method):
    check_accepted("vLLM", method, served)  # another engine's rounding; vLLM also counts drafts beyond the end of an answer
