"""Runs inside vLLM's own environment: greedy answers with or without a draft. usage: vllm_decode.py REQUEST.json ANSWER.json"""

import json
import sys

from vllm import LLM, SamplingParams


def main(request_file: str, answer_file: str) -> None:
    request = json.load(open(request_file))
    speculative = {}
    if request["draft"]:
        config = {"method": request["method"], "model": request["draft"], "num_speculative_tokens": request["draft_tokens"]}
        speculative = {"speculative_config": config}
    engine = LLM(
        model=request["target"], dtype="bfloat16", max_model_len=1024, max_num_seqs=4, enforce_eager=True, enable_prefix_caching=False,
        disable_log_stats=False, seed=0, **speculative,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=request["max_new_tokens"])
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in request["prompts"]], sampling)
    counters = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    per_position = [metric.values for metric in engine.get_metrics() if metric.name == "vllm:spec_decode_num_accepted_tokens_per_pos"]
    answer = {
        "ids": [list(output.outputs[0].token_ids) for output in outputs],
        "drafts": counters.get("vllm:spec_decode_num_drafts", 0),
        "accepted": counters.get("vllm:spec_decode_num_accepted_tokens", 0),
        "per_position": per_position[0] if per_position else [],
    }
    json.dump(answer, open(answer_file, "w"))


if __name__ == "__main__":
    main(*sys.argv[1:])
