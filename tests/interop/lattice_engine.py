"""Runs inside an engine's environment: its LiLiCorr head on our weights and inputs. usage: lattice_engine.py REQUEST.json ANSWER.json"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    given = load_file(request["given"])
    weights = {name.removeprefix("lilicorr."): value for name, value in given.items() if name.startswith("lilicorr.")}
    found, shapes = ENGINES[request["engine"]](request, given, weights)
    save_file({name: value.contiguous() for name, value in found.items()}, request["found"])
    Path(answer_file).write_text(json.dumps({"shapes": shapes}))


def vllm(request: dict, given: dict[str, Tensor], weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """Its scores, loaded as its model loads them."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.model_executor.models.lilicorr import LiLiCorrHead
    from vllm.model_executor.models.utils import AutoWeightsLoader

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{request['found']}.store", 0, "gloo")
        initialize_model_parallel(1, 1)
        sizes = {"model_hidden_size": request["width"], "block_size": request["block_size"], "rms_norm_eps": request["eps"]}
        head = LiLiCorrHead(**sizes, config=request["settings"])
        shapes = {name: list(value.shape) for name, value in head.named_parameters()}
        AutoWeightsLoader(head).load_weights(weights.items())
        head.materialize_inference_buffers(torch.device("cpu"), torch.float32)
        for layer in [module for module in head.modules() if hasattr(module, "quant_method")]:
            layer.quant_method.process_weights_after_loading(layer)  # as its loader does
        with torch.no_grad():
            best = (given["states"] @ given["head"].T).log_softmax(-1).topk(request["settings"]["lilicorr_candidate_topk"])
            known = given["context"].any(-1)
            scores = head.forward(given["embedding"][best.indices], best.values, given["states"], given["context"], known)
    return {"tokens": best.indices, "scores": scores}, shapes


def sglang(request: dict, given: dict[str, Tensor], weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """Its candidates, scores, greedy walk, and the laws of a walk at a temperature."""
    from sglang.kernels.ops.speculative.lilicorr import lilicorr_sample_path, lilicorr_topk_lse
    from sglang.srt.models.lilicorr import LiLiCorrHead
    from sglang.srt.speculative.lilicorr_utils import _parse_lilicorr_config

    settings = _parse_lilicorr_config(request["settings"])
    head = LiLiCorrHead(model_hidden_size=request["width"], block_size=request["block_size"], rms_norm_eps=request["eps"], config=settings)
    shapes = {name: list(value.shape) for name, value in head.named_parameters()}
    head.load_state_dict(weights)
    head.materialize_inference_buffers(torch.device("cpu"), torch.float32)
    states = given["states"]
    with torch.no_grad():
        logits, tokens, normaliser = lilicorr_topk_lse(states.flatten(0, 1) @ given["head"].T, settings.candidate_topk)
        tokens = tokens.view(*states.shape[:2], -1)
        start, pair = head.score(
            token_embeddings=given["embedding"][tokens][:, None],
            candidate_log_probs=(logits - normaliser[:, None]).view(tokens.shape)[:, None],
            pass_hidden=states[:, None], anchor_hidden=given["context"][:, None], anchor_valid=given["context"].any(-1)[:, None],
        )  # fmt: skip
        start, pair = (scores[:, 0] for scores in head.log_factors(start, pair))
        found = {"tokens": tokens, "scores": torch.cat((start[:, None, None].expand(-1, 1, start.shape[1], -1), pair), 1)}
        temperature, uniforms = torch.full((len(states),), request["temperature"]), given["uniforms"]
        for name, greedy in (("greedy", True), ("drawn", False)):
            mask = torch.full((len(states),), greedy)
            found[name], found[f"{name}_laws"] = lilicorr_sample_path(
                start, pair, tokens, uniforms=uniforms, temperatures=temperature, greedy_mask=mask
            )
    return found, shapes


ENGINES = {"vllm": vllm, "sglang": sglang}

if __name__ == "__main__":
    main(*sys.argv[1:])
