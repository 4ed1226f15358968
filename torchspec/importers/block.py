"""DFlash and its family in the z-lab format, which is ours: what its readers take for granted is written out (docs/validation.md)."""

from dataclasses import replace
from pathlib import Path

from transformers import Qwen3Config

from torchspec.errors import ContractError, UserError
from torchspec.files.finite import check_finite
from torchspec.importers.folder import MASK_EMBEDDING, read_tensors, unpickle
from torchspec.importers.own import Draft, named_as_ours, our_config, take_embedding, take_vocabulary
from torchspec.methods.base import method_class
from torchspec.methods.block.format import default_layer_ids
from torchspec.methods.config import SLIDING
from torchspec.target.frozen import FrozenTarget


def import_block(method: str, folder: Path, values: dict, target: FrozenTarget, draft_tokens: int | None) -> Draft:
    """A draft of this one of our methods."""
    kind = method_class(method)
    nested = {**(values.get("dflash_config") or {}), **kind.read_settings(folder, values)}
    layer_ids = nested.get("target_layer_ids") or values.get("target_layer_ids")
    layer_ids = layer_ids or list(default_layer_ids(target.num_layers, values.get("num_hidden_layers", 1)))
    mask_token_id = _mask_token(values, nested, target)
    block_size = _block_size(values, nested, draft_tokens, kind.proposing_rows(nested))
    values = {**values, **_windows(values, nested)}
    settings = {
        "num_target_layers": _target_layers(values, layer_ids, target),
        "block_size": block_size,
        "dflash_config": {**nested, "block_size": block_size, "mask_token_id": mask_token_id, "target_layer_ids": list(layer_ids)},
    }
    config = our_config(Qwen3Config, {**values, **settings})
    config.architectures = [kind.architecture]
    kind.check_serves(config, target)
    tensors = kind.fitted(named_as_ours(read_tensors(folder), {}), config)
    reads = _with_mask_embedding(folder, take_embedding(tensors, target), mask_token_id)
    rows = take_vocabulary(tensors, target, values.get("draft_vocab_size"))
    if rows is not None or "draft_vocab_size" in values:
        config.draft_vocab_size = rows
    return Draft(method, config, tensors, reads)


def _windows(values: dict, nested: dict) -> dict:
    """Where `dflash_config` speaks of windows, in the keys that are ours, as vLLM reads them: use_swa makes every layer slide whose
    config.json lets none, and such blocks stay whole; swa_window_size goes before sliding_window.
    """
    slides, swa = SLIDING in (values.get("layer_types") or ()), nested.get("use_swa")
    if not slides and not swa:
        return {}
    own = {} if nested.get("swa_window_size") is None else {"sliding_window": nested["swa_window_size"], "use_sliding_window": True}
    if slides:
        return own
    nested.setdefault("causal", False)
    window = {"sliding_window": values.get("sliding_window"), "use_sliding_window": True}
    return {"layer_types": [SLIDING] * values["num_hidden_layers"], **window, **own}


def _block_size(values: dict, nested: dict, draft_tokens: int | None, proposing: slice) -> int:
    """Older folders say it at the top, newer ones inside; fewer draft tokens than trained are a shorter block, as in vLLM."""
    said = {size for size in (values.get("block_size"), nested.get("block_size")) if size is not None}
    if len(said) != 1:
        what = f"two block sizes, {sorted(said)}" if said else "no block_size"
        raise UserError(f"the draft's config.json names {what}; its readers would differ, so write the one that it was trained with")
    trained = said.pop()
    most = len(range(trained)[proposing])
    if draft_tokens is not None and draft_tokens > most:
        raise UserError(f"--draft-tokens {draft_tokens}: a block of {trained} slots proposes at most {most} tokens")
    return trained if draft_tokens is None else draft_tokens + trained - most


def _mask_token(values: dict, nested: dict, target: FrozenTarget) -> int:
    mask_token_id = nested.get("mask_token_id", values.get("mask_token_id"))
    if mask_token_id is None or not 0 <= mask_token_id < len(target.embedding):
        raise UserError(
            f"the draft's config.json says dflash_config.mask_token_id={mask_token_id}, which is no token of the target's "
            f"{len(target.embedding)}; write the one that it was trained with"
        )
    return mask_token_id


def _target_layers(values: dict, layer_ids: list[int], target: FrozenTarget) -> int:
    """Layers of the target. Some trainers write the number of captured layers under this name, which no target can have."""
    said = values.get("num_target_layers")
    return target.num_layers if said in (None, len(layer_ids)) else said


def _with_mask_embedding(folder: Path, target: FrozenTarget, mask_token_id: int) -> FrozenTarget:
    """A trained embedding of the mask token replaces the target's row for drafting; the target itself keeps its own."""
    file = folder / MASK_EMBEDDING
    if not file.is_file():
        return target
    saved = unpickle(file)
    row, token = (saved.get("embedding"), saved.get("mask_token_id", mask_token_id)) if isinstance(saved, dict) else (saved, mask_token_id)
    if token != mask_token_id or row is None or row.numel() != target.embedding.shape[1]:
        raise ContractError(
            f"{file} must hold an embedding of width {target.embedding.shape[1]} for the mask token {mask_token_id} of config.json, "
            f"but holds one for {token}{'' if row is None else f' of shape {tuple(row.shape)}'}; fetch both again"
        )
    check_finite({"embedding": row}, file, "fetch it again")
    embedding = target.embedding.clone()
    embedding[mask_token_id] = row.flatten().to(embedding)
    return replace(target, embedding=embedding)
