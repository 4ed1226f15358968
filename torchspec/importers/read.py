"""A draft folder of any supported project -> our config and our tensors, by what its config.json calls itself."""

from functools import partial
from pathlib import Path

from torchspec.errors import UserError
from torchspec.importers.block import import_block
from torchspec.importers.eagle3 import QWEN3, import_eagle3
from torchspec.importers.own import Draft
from torchspec.importers.peagle import drafts_at_once, import_peagle
from torchspec.importers.speculators import is_speculators, unwrapped
from torchspec.target.frozen import FrozenTarget

READERS = {
    "DFlashDraftModel": partial(import_block, "dflash"),
    "DFlash2DraftModel": partial(import_block, "dflash2"),
    "Qwen3DSparkModel": partial(import_block, "dspark"),
    "DSparkDraftModel": partial(import_block, "dspark"),
    "LiLiCorrDraftModel": partial(import_block, "lilicorr"),
    "LlamaForCausalLMEagle3": import_eagle3,
    "Eagle3LlamaForCausalLM": import_eagle3,
    QWEN3: import_eagle3,
    "Eagle3MiniMaxM2ForCausalLM": import_eagle3,
    "Eagle3Qwen2_5vlForCausalLM": import_eagle3,
    "Eagle3Qwen3vlForCausalLM": import_eagle3,
    "PeagleLlamaForCausalLM": import_peagle,
    "PeagleQwen3ForCausalLM": import_peagle,
    "DominoDraftModel": partial(import_block, "domino"),
    "Qwen3XPressModel": partial(import_block, "xpress"),
}
PROJECTORS = {"domino": "DominoDraftModel"}  # the two names of a draft with such a head: projector_type of a DFlashDraftModel, or its own


def read_draft(folder: Path, values: dict, target: FrozenTarget, draft_tokens: int | None) -> Draft:
    """values: of its config.json; draft_tokens: proposed per step, none: as many as the draft was trained for."""
    if is_speculators(values):
        values = unwrapped(values)
    architecture = (values.get("architectures") or [values.get("model_type", "draft without architectures")])[0]
    if "draft_vocab_size" in values and f"Eagle3{architecture}" in READERS:  # EAGLE's own checkpoints; vLLM renames them
        architecture = f"Eagle3{architecture}"
    if architecture == "DFlashDraftModel":
        architecture = PROJECTORS.get((values.get("dflash_config") or {}).get("projector_type"), architecture)
    if architecture not in READERS:
        raise UserError(f"draft {folder} is a {architecture}; supported are {', '.join(READERS)}, and folders of speculators")
    read = READERS[architecture]
    if read is import_eagle3 and drafts_at_once(values):  # nothing but this key tells vLLM's plain folders of both apart
        read = import_peagle
    return read(folder, {**values, "architectures": [architecture]}, target, draft_tokens)
