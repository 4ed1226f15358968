"""Drafts of other methods on the backbone that was trained as DFlash, with heads drawn at random: what an engine makes of a head needs no
training, and a head that was trained for minutes would hardly have a say.
"""

from fnmatch import fnmatch
from pathlib import Path

import torch

from torchspec.export.hf import serving_config, serving_tensors, write_draft
from torchspec.importers.folder import read_config, read_tensors
from torchspec.methods.base import method_class
from torchspec.methods.registry import METHODS
from torchspec.target.frozen import FrozenTarget

# options of the draft section; parameters -> size of what is added to them, so that logits move by about one
HEADS = {
    "dspark": ({"markov_rank": 16, "sample_from_anchor": False}, {"markov_head.*": 0.3, "confidence_head.*": 0.05}),
    "dflash2": (
        {"selector_rank": 16, "selector_top_k": 8},
        {"*_codebook": 0.5, "*.hidden_projection.*": 0.1, "*_conv.*": 0.02},
    ),
}


def graft(method: str, trained: Path, target_folder: Path, out: Path) -> Path:
    """trained: an exported DFlash draft -> out, a draft of this method with its backbone."""
    target, values, kind = FrozenTarget.load(target_folder, torch.float32), read_config(trained), method_class(method)
    options, drawn = HEADS[method]
    shape = {"num_layers": values["num_hidden_layers"], "block_size": values["block_size"]}
    layers = tuple(values["dflash_config"]["target_layer_ids"])
    draft = METHODS[method].config(**{"method": method, "target_layer_ids": layers, **shape, **options})
    config = kind.new_config(draft, target, values["dflash_config"]["mask_token_id"])
    generator = torch.Generator().manual_seed(0)
    model = kind(config, target, draft, torch.ones(len(target.head))).build(generator)
    left = model.load_state_dict({name: value.float() for name, value in read_tensors(trained).items()}, strict=False)
    assert not left.unexpected_keys and all(any(fnmatch(name, pattern) for pattern in kind.head) for name in left.missing_keys)
    for name, weight in model.named_parameters():
        for pattern, size in drawn.items():
            if fnmatch(name, pattern):
                weight.data += size * torch.randn(weight.shape, generator=generator)
    return write_draft(out, serving_tensors(model.state_dict(), "float32"), serving_config(config, "float32"), {})
