"""Counters of the engines, from text and answers as vLLM 0.32 and SGLang 0.5.23 send them; and what is refused before anything starts."""

import json
from pathlib import Path

import pytest

from torchspec.errors import UserError
from torchspec.serve import engines
from torchspec.serve.client import Group, Reply, rates
from torchspec.serve.engines import ENGINES, Steps
from torchspec.serve.options import serving_options, training_serving
from torchspec.serve.records import Served
from torchspec.training.config import EvaluationConfig

VLLM = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 100.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 20.0
# HELP vllm:spec_decode_num_accepted_tokens_per_pos_total Accepted tokens per draft position.
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 50.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 25.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="m",position="0"} 4.0
"""


def test_vllm_counters_add_up_over_its_engines(monkeypatch):
    answer = type("Answer", (), {"text": VLLM})
    monkeypatch.setattr(engines.requests, "get", lambda url, timeout: answer)
    assert ENGINES["vllm"].count("http://x", [], 3) == Steps(120, [54, 25, 0])
    assert Steps(120, [54, 25, 0]).since(Steps(20, [4, 5, 0])) == Steps(100, [50, 20, 0])


def test_vllm_is_told_its_own_name_of_a_method():
    for method, expected in {"dflash": {"method": "dflash"}, "peagle": {"method": "eagle3", "parallel_drafting": True}}.items():
        option, text = ENGINES["vllm"].with_draft(Served(Path("target"), Path("draft"), method, 7, "bfloat16", {}).drafting)
        assert option == "--speculative-config" and json.loads(text) == {**expected, "model": "draft", "num_speculative_tokens": 7}


def test_sglang_histograms_become_counts_per_slot():
    """histogram[k]: steps that accepted k drafts."""
    replies = [
        Reply([1], 0, 0, {"spec_correct_drafts_histogram": [3, 2, 1]}),
        Reply([1], 0, 0, {"spec_correct_drafts_histogram": [1, 0, 0, 4]}),
    ]
    assert ENGINES["sglang"].count("http://x", [*replies, Reply([1], 0, 0, None)], 3) == Steps(11, [2 + 1 + 4, 1 + 4, 4])


def test_rates():
    """Two groups of one second: 12 tokens; first tokens after 0.1, 0.2, 0.3 s; 0.1 s per further token in the median."""
    groups = [Group([Reply([1] * 5, 0.1, 0.5, None), Reply([1] * 5, 0.2, 0.8, None)], 1.0), Group([Reply([1, 2], 0.3, 0.35, None)], 1.0)]
    assert rates(groups) == pytest.approx({"tokens_per_second": 6.0, "ttft_ms": 200.0, "tpot_ms": 100.0})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("vllm", "1,x", None, None, None, "", None), "--concurrency '1,x' must be whole numbers"),
        (("vllm", "0", None, None, None, "", None), "--concurrency '0' must be whole numbers"),
        (("vllm", "1", "http://a", None, None, "", None), "--url and --plain-url go together"),
        (("sglang", "1", None, None, None, "", None), "--mode sglang needs sglang: pip install 'torchspec.sglang.', or name the Python"),
    ],
)
def test_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        serving_options(*values)


def test_accepted():
    serving, concurrencies = serving_options("vllm", "8, 1,8", None, None, "python3.12", "--enforce-eager", None)
    assert concurrencies == (1, 8) and serving.python == "python3.12"
    assert serving_options("vllm", "1", "http://a", "http://b", None, "", None)[0].url == "http://a"


def test_a_run_that_serves_its_checkpoints_without_the_engine_is_refused():
    with pytest.raises(UserError, match="evaluation.served=vllm needs vllm.*with evaluation.served_python"):
        training_serving(EvaluationConfig(served="vllm"))
