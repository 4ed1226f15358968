"""Runs inside an engine's environment: its DFlash2 on a draft of ours, on the CPU. usage: selector_engine.py REQUEST.json ANSWER.json"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def main(request_file: str, answer_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    given, weights = load_file(request["given"]), load_file(Path(request["draft"]) / "model.safetensors")
    with torch.inference_mode():
        found, shapes = ENGINES[request["engine"]](request, given, weights)
    save_file({name: value.contiguous() for name, value in found.items()}, request["found"])
    Path(answer_file).write_text(json.dumps({"shapes": shapes}))


class Attend(torch.nn.Module):
    """In place of vLLM's Attention, which reads a server's paged cache: keeps the context's keys and values that its draft writes."""

    def __init__(self, real):
        super().__init__()
        self.size, self.kv_cache = real.head_size, None

    @property
    def impl(self):
        return self

    def do_kv_cache_update(self, _layer, k, v, _cache, _slots):
        self.context = k, v

    def forward(self, q, k, v):
        q, k, v = (x.view(len(x), -1, self.size) for x in (q, k, v))
        k, v = (torch.cat((old, new)) for old, new in zip(self.context, (k, v), strict=True))
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1).flatten(1)


def vllm(request: dict, given: dict[str, Tensor], weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """Its whole draft class, from the folder: states of a block behind a context, candidates, scores after each of those before."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import process_weights_after_loading
    from vllm.model_executor.models.registry import ModelRegistry

    slots, anchor = len(given["block"]) - 1, len(given["features"])
    asked = EngineArgs(model=request["target"], dtype="float32", enforce_eager=True, skip_tokenizer_init=True)
    config = asked.create_engine_config()
    asked.speculative_config = {"method": "dflash", "model": request["draft"], "num_speculative_tokens": slots}
    # past the check of the whole, since the runner that serves such a draft needs Triton; the draft's class does not
    config.speculative_config = asked.create_speculative_config(config.model_config, config.parallel_config)
    draft_config = config.speculative_config.draft_model_config
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{request['found']}.store", 0, "gloo")
        initialize_model_parallel(1, 1)
        torch.set_default_dtype(torch.float32)
        model = ModelRegistry.resolve_model_cls(draft_config.architectures, draft_config)[0](vllm_config=config)
        for layer in model.model.layers:
            layer.self_attn.attn = Attend(layer.self_attn.attn)
        # one kernel norms the context's keys of all layers, each with its own weight; on a CPU it takes the first layer's for all
        norms = [layer.self_attn.k_norm for layer in model.model.layers]
        model.model._normalize_context_k = lambda keys: torch.stack([norm(k) for norm, k in zip(norms, keys, strict=True)])
        shapes = {name: list(value.shape) for name, value in model.named_parameters() if "conv" in name or "selector" in name}
        model.load_weights(iter(weights.items()))
        model.model.embed_tokens.weight[: len(given["embedding"])] = given["embedding"]
        model.lm_head.weight[: len(given["head"])] = given["head"]
        process_weights_after_loading(model, draft_config, torch.device("cpu"))
        places = torch.arange(anchor + slots + 1)
        model.precompute_and_store_context_kv(model.combine_hidden_states(given["features"]), places[:anchor], places[:anchor])
        states = model(given["block"], places[anchor:])[1:]
        candidates, logits = model.compute_candidates(states)
        scores = model.model.candidate_selector(candidates[None], logits[None], states[None], given["block"][:1])[0]
    return {"states": states, "candidates": candidates, "scores": scores}, shapes


def sglang(request: dict, given: dict[str, Tensor], weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """Its convolution of the first layer, around SiLU, its selector and its greedy walk."""
    from sglang.srt.models.dflash import CandidateSelector, DFlashGroupedConv
    from sglang.srt.speculative.dflash_utils import parse_dflash_draft_config
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(request["draft"])
    said = parse_dflash_draft_config(draft_hf_config=config)
    conv = DFlashGroupedConv(config.hidden_size, said.block_size, said.conv_kernel_size, said.conv_group_size)
    sizes = {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size}
    selector = CandidateSelector(**sizes, state_rank=said.selector_rank, top_k=said.selector_top_k)
    shapes = {}
    for module, prefix in ((conv, "layers.0.attention_conv."), (selector, "candidate_selector.")):
        module.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)})
        shapes |= {prefix + name: list(value.shape) for name, value in module.named_parameters()}
    prepared, kernel = conv.prepare(given["rows"])
    convolved = conv.finish(torch.nn.functional.silu(prepared), kernel)
    states = given["states"]
    logits, candidates = (states @ given["head"].T).topk(said.selector_top_k)
    lattice = {"candidate_ids": candidates[None], "unary_logits": logits[None], "hidden_states": states[None]}
    scores = selector.build_lattice(**lattice, anchor_token_ids=given["block"][:1])
    greedy = {"uniforms": torch.zeros(1, len(states)), "temperatures": torch.ones(1), "greedy_mask": torch.ones(1, dtype=torch.bool)}
    walked, _ = selector.sample_path(candidate_ids=candidates[None], scores=scores, **greedy)
    return {"convolved": convolved, "candidates": candidates, "scores": scores[0], "walked": walked[0]}, shapes


ENGINES = {"vllm": vllm, "sglang": sglang}

if __name__ == "__main__":
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # SGLang compiles small functions, for a server that stays
    main(*sys.argv[1:])
