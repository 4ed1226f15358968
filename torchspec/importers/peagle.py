"""P-EAGLE drafts as vLLM serves them: folders of speculators, and EAGLE-3 folders whose config.json names a token for masked rows."""

from pathlib import Path

from transformers import LlamaConfig, Qwen3Config

from torchspec.errors import UserError
from torchspec.importers.eagle3 import captured_layers, trained_tokens
from torchspec.importers.folder import read_tensors
from torchspec.importers.own import Draft, named_as_ours, our_config, take_embedding, take_vocabulary
from torchspec.methods.eagle3.format import AUX
from torchspec.methods.peagle.format import ARCHITECTURE, check_serves, speculators_keys
from torchspec.target.frozen import FrozenTarget

QWEN3 = ("PeagleQwen3ForCausalLM", "Eagle3Qwen3ForCausalLM")  # the architectures whose layers norm each head
MASKS = ("mask_token_id", "pard_token", "ptd_token_id")  # in vLLM's order


def drafts_at_once(values: dict) -> bool:
    return any(values.get(key) is not None for key in MASKS)


def import_peagle(folder: Path, values: dict, target: FrozenTarget, draft_tokens: int | None) -> Draft:
    if not drafts_at_once(values):
        raise UserError(f"the draft's config.json names none of {', '.join(MASKS)}; write the token that masked rows were trained with")
    nested = dict(values.get("eagle_config") or {})
    layer_ids = captured_layers(values, nested, target.num_layers)
    num_depths = draft_tokens or trained_tokens(values.get("num_depths"))
    settings = {
        "num_target_layers": values.get("num_target_layers") or target.num_layers,
        "num_depths": num_depths,
        "mask_token_id": next(values[key] for key in MASKS if values.get(key) is not None),
        "draft_vocab_size": None,
        "num_aux_hidden_states": len(layer_ids),
        AUX: [z + 1 for z in layer_ids],
        "norm_before_fc": bool(nested.get("norm_before_fc", values.get("norm_before_fc"))),
        **{name: bool(values.get(name)) for name in ("norm_before_residual", "fc_norm")},
        **speculators_keys(num_depths),
    }
    kind = Qwen3Config if values["architectures"][0] in QWEN3 else LlamaConfig
    config = our_config(kind, {**values, **settings})
    config.architectures = [ARCHITECTURE]
    check_serves(config, target)
    tensors = named_as_ours(read_tensors(folder), {"midlayer.": "layers.0."})
    if "mask_hidden" in tensors:
        tensors["mask_hidden"] = tensors["mask_hidden"].view(1, 1, -1)
    reads = take_embedding(tensors, target)
    config.draft_vocab_size = take_vocabulary(tensors, target, values.get("draft_vocab_size"))
    return Draft("peagle", config, tensors, reads)
