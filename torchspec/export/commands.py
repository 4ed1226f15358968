"""What each engine is told of a draft: the words of its command line, and the whole line for a person.

The measured servers of serve/ are started with the same words.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from torchspec.console import command
from torchspec.methods.base import method_class, traps_of
from torchspec.methods.registry import method_of

# methods that an engine calls otherwise; what they are it reads from the folder
VLLM = {"dflash2": "dflash", "lilicorr": "dflash", "xpress": "dflash", "peagle": "eagle3"}
SGLANG = {"dflash2": "dflash", "domino": "dflash", "lilicorr": "dflash"}
LLAMACPP = {"dflash": "draft-dflash", "dflash2": "draft-dflash", "dspark": "draft-dspark", "eagle3": "draft-eagle3"}  # --spec-type


HERE, QUESTION = "transformers", "Why is the sky blue?"


@dataclass(frozen=True)
class Drafting:
    """A draft, as it is named to an engine."""

    draft: str  # folder or hub id; for llama.cpp its file
    method: str
    tokens: int  # proposed per step


def vllm_words(drafting: Drafting) -> list[str]:
    method, tokens = VLLM.get(drafting.method, drafting.method), drafting.tokens
    wanted = {"method": method, "model": drafting.draft, "num_speculative_tokens": tokens}
    if drafting.method == "peagle":
        wanted["parallel_drafting"] = True
    return ["--speculative-config", json.dumps(wanted)]


def sglang_words(drafting: Drafting) -> list[str]:
    tokens, method = drafting.tokens, SGLANG.get(drafting.method, drafting.method)
    words = ["--speculative-algorithm", method.upper(), "--speculative-draft-model-path", drafting.draft]
    words += ["--speculative-num-draft-tokens", str(tokens + 1)]  # SGLang counts the anchor, or the tree's root
    return [*words, "--speculative-num-steps", str(tokens), "--speculative-eagle-topk", "1"] if method == "eagle3" else words


def llamacpp_words(drafting: Drafting) -> list[str]:
    words = ["--spec-draft-model", drafting.draft, "--spec-type", LLAMACPP[drafting.method]]
    return [*words, "--spec-draft-n-max", str(drafting.tokens)]


def serve_commands(config: PreTrainedConfig, draft: str, target: str, target_type: str | None = None) -> dict[str, str]:
    """Engine -> command, of the engines that compute this draft as it was trained; for llama.cpp that of `gguf_command`. The last one
    decodes with Transformers, here.

    config: of the draft's folder. target_type: of the target's config; none where it is not at hand.
    """
    method = method_of(config.to_dict())
    made_by = method_class(method)
    drafting = Drafting(draft, method, made_by.draft_tokens(config))
    commands = {
        "vllm": command("vllm", "serve", target, *vllm_words(drafting)),
        "sglang": command("python", "-m", "sglang.launch_server", "--model-path", target, *sglang_words(drafting)),
    }
    if method in LLAMACPP:
        commands["llamacpp"] = gguf_command(config, Path("target.gguf"), Path("draft.gguf"))
    served = {engine: line for engine, line in commands.items() if not traps_of(made_by, config, target_type)[engine]}
    return {**served, HERE: command("torchspec", "generate", QUESTION, "-d", draft, "-t", target)}


def gguf_command(config: PreTrainedConfig, target: Path, draft: Path) -> str:
    """Of files that `torchspec export --format gguf` wrote."""
    method = method_of(config.to_dict())
    drafting = Drafting(str(draft), method, method_class(method).draft_tokens(config))
    return command("llama-server", "--model", target, *llamacpp_words(drafting))
