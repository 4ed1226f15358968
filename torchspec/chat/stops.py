"""Where an answer ends: one set of token ids for training, evaluation, regeneration and the checks on servers."""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from torchspec.errors import UserError

# SGLang stops at these wherever the tokenizer has them (srt/utils/hf_transformers/common.py): some checkpoints name them nowhere.
OF_SGLANG = ("<|eom_id|>", "<|content_model_end_sampling|>", "<|ifm|im_end|>")


def stop_ids(target_folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The union of the ids at which vLLM and SGLang end an answer.

    vLLM: the tokenizer's eos and the eos_token_id of generation_config.json, or of config.json where that file is missing, whatever
    `--generation-config` says (SamplingParams.update_from_generation_config). SGLang: those of both files, the tokenizer's eos, and
    its own list (Req._check_token_based_finish). Models that also see images keep the language model's config in text_config.
    """
    config = _read(target_folder / "config.json")
    named = [
        source.get("eos_token_id") for source in (_read(target_folder / "generation_config.json"), config, config.get("text_config") or {})
    ]
    added = tokenizer.get_added_vocab()
    ids = [tokenizer.eos_token_id, *(added.get(text) for text in OF_SGLANG)]
    for eos in named:
        ids += eos if isinstance(eos, list) else [eos]
    return frozenset(token for token in ids if token is not None)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch the target again") from error
