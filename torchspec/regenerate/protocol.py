"""What each engine is asked for one answer, and how its reply reads. Sampling is named in full, so that no default of a server counts.

Prompts go as token ids and the engine's own ids come back: vLLM's `return_token_ids`, llama.cpp's `return_tokens`, SGLang's `output_ids`.
Of any other server that speaks OpenAI's protocol there is the text alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

COMPLETIONS = "v1/completions"
IN_FLIGHT = 32  # requests at a time, of each server, where nobody says otherwise


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
    stop: list[int]  # token ids


@dataclass(frozen=True)
class Written:
    ids: list[int] | None  # None: the server gave text alone
    text: str
    finish: str  # stop, length, or the engine's own word for a failure
    read: int | None  # tokens of the prompt, and of the answer, as the server counts them
    count: int | None


@dataclass(frozen=True)
class Protocol:
    path: str
    body: Callable[[str, Request], dict]  # model, request
    read: Callable[[dict], Written]
    tokenize: Callable[[str, str], dict] | None  # (model, text) -> what /tokenize is asked; None: there is no such place


def _openai(model: str, request: Request) -> dict:
    return {
        "model": model, "prompt": request.prompt, "max_tokens": request.max_new_tokens, "temperature": request.temperature,
        "seed": request.seed, "n": 1, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def _read_openai(said: dict) -> Written:
    choice, usage = said["choices"][0], said.get("usage") or {}
    return Written(
        choice.get("token_ids"), choice["text"], choice["finish_reason"], usage.get("prompt_tokens"), usage.get("completion_tokens")
    )


def _vllm(model: str, request: Request) -> dict:
    beyond = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "skip_special_tokens": False}
    return _openai(model, request) | beyond | {"stop_token_ids": request.stop, "return_token_ids": True}


def _sglang(_model: str, request: Request) -> dict:
    sampling = {
        "max_new_tokens": request.max_new_tokens, "temperature": request.temperature, "sampling_seed": request.seed, "top_p": 1.0,
        "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
        "stop_token_ids": request.stop, "ignore_eos": False, "skip_special_tokens": False,
    }  # fmt: skip
    return {"input_ids": request.prompt, "sampling_params": sampling}


def _read_sglang(said: dict) -> Written:
    about = said["meta_info"]
    return Written(said["output_ids"], said["text"], about["finish_reason"]["type"], about["prompt_tokens"], about["completion_tokens"])


def _llamacpp(_model: str, request: Request) -> dict:
    """Its stop ids are those of its file: an answer that goes on behind one of ours is cut there. One sampler, so nothing else is done."""
    sampling = {"samplers": ["temperature"], "temperature": request.temperature, "seed": request.seed}
    return {"prompt": request.prompt, "n_predict": request.max_new_tokens, "return_tokens": True, "cache_prompt": True, **sampling}


def _read_llamacpp(said: dict) -> Written:
    finish = {"eos": "stop", "limit": "length"}.get(said["stop_type"], said["stop_type"])
    return Written(said.get("tokens"), said["content"], finish, said["tokens_evaluated"], said["tokens_predicted"])


PROTOCOLS = {  # by what a server calls itself in `owned_by` of /v1/models
    "vllm": Protocol(COMPLETIONS, _vllm, _read_openai, lambda m, text: {"model": m, "prompt": text, "add_special_tokens": False}),
    "sglang": Protocol("generate", _sglang, _read_sglang, lambda m, text: {"model": m, "prompt": text, "add_special_tokens": False}),
    "llamacpp": Protocol(
        "completion", _llamacpp, _read_llamacpp, lambda _m, text: {"content": text, "add_special": False, "parse_special": True}
    ),
}
ANY = Protocol(COMPLETIONS, _openai, _read_openai, None)
