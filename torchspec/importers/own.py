"""What a draft may bring in place of the target's: embedding, head, vocabulary. A copy of the target's is no own one."""

from dataclasses import dataclass, replace

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedConfig

from torchspec.console import console
from torchspec.errors import ContractError, UserError
from torchspec.methods.vocabulary import check_vocabulary
from torchspec.target.frozen import EMBEDDING, HEAD, FrozenTarget

LEFT_OUT = ("architectures", "auto_map", "model_type", "torch_dtype", "transformers_version", "_name_or_path")


@dataclass(frozen=True)
class Draft:
    """A draft of any project in the terms of ours."""

    method: str
    config: PreTrainedConfig
    tensors: dict[str, Tensor]  # those that the method's model has, and no other
    target: FrozenTarget  # as the draft reads it: with the draft's own embedding where it brings one


def our_config(kind: type[PreTrainedConfig], values: dict) -> PreTrainedConfig:
    """The settings of a config.json, either spelling of the rotary ones, as a config of Transformers."""
    values = {key: value for key, value in values.items() if key not in LEFT_OUT}
    for spelling in ("rope_parameters", "rope_scaling"):
        if values.get(spelling):
            values[spelling] = _one_position_per_token(values[spelling])
    try:
        if values.get("head_dim") is None and "head_dim" in values:
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        return kind(**values)
    except (KeyError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"the draft's config.json cannot be read ({' '.join(str(error).split())}); fetch or export it again") from error


def _one_position_per_token(rope: dict) -> dict:
    """Text has no others, and there the multimodal sections of a rotary setting change nothing."""
    rope = {key: value for key, value in rope.items() if key not in ("mrope_section", "mrope_interleaved")}
    return {key: "default" if value == "mrope" else value for key, value in rope.items()}


def named_as_ours(tensors: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """prefixes: theirs -> ours. Rotary tables follow from the config and are left out."""
    named = {}
    for name, value in tensors.items():
        name = name.removeprefix("model.")
        for theirs, ours in prefixes.items():
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        if not name.endswith("rotary_emb.inv_freq"):
            named[name] = value
    return named


def take_embedding(tensors: dict[str, Tensor], target: FrozenTarget) -> FrozenTarget:
    """Moves the draft's embedding, if it has one, out of its tensors and into the target as the draft reads it."""
    own = tensors.pop(EMBEDDING, None)
    if own is None or _is(own, target.embedding):
        return target
    if own.shape != target.embedding.shape:
        raise ContractError(
            f"the draft's {EMBEDDING} is {tuple(own.shape)} but the target's {tuple(target.embedding.shape)}; "
            "give the target that it was trained for"
        )
    own = own.to(target.embedding)
    different = int((own != target.embedding).any(dim=1).sum())
    console.print(f"the draft reads tokens through its own embedding: {different:,} of {len(own):,} rows differ from the target's")
    return replace(target, embedding=own)


def take_vocabulary(tensors: dict[str, Tensor], target: FrozenTarget, size: int | None) -> int | None:
    """Brings the draft's head and the maps of its vocabulary into our form -> its tokens; none where both are the target's.

    size: `draft_vocab_size` of the config.json. Servers ignore t2d, so it may be missing; so may d2t where nothing is pruned.
    """
    vocab_size = len(target.head)
    head, d2t, t2d = (tensors.pop(name, None) for name in (HEAD, "d2t", "t2d"))
    if head is None:
        if size not in (None, vocab_size) or d2t is not None:
            raise UserError(f"the draft proposes from a vocabulary of its own but holds no {HEAD}; fetch its weights again")
        return None
    if len(head) == vocab_size and _is(head, target.head):
        return None
    if d2t is None and len(head) == vocab_size:
        d2t = torch.zeros(vocab_size, dtype=torch.int64)
    if d2t is None or d2t.shape != head.shape[:1] or size not in (None, len(head)):
        maps = "no d2t" if d2t is None else f"a d2t of {len(d2t):,}"
        raise ContractError(
            f"the draft's {HEAD} has {len(head):,} rows, with {maps} and draft_vocab_size={size}; "
            "rows, d2t and draft_vocab_size must be one number, so fetch the draft again"
        )
    ids, order = (d2t.long() + torch.arange(len(d2t))).sort()
    marked = torch.zeros(vocab_size, dtype=torch.bool)
    if ids[0] >= 0 and ids[-1] < vocab_size:
        marked[ids] = True
    tensors |= {HEAD: head[order].contiguous(), "d2t": ids - torch.arange(len(ids)), "t2d": marked if t2d is None else t2d.bool()}
    check_vocabulary(tensors["d2t"], tensors["t2d"])
    if not _is(tensors[HEAD], target.head[ids.to(target.head.device)]):
        console.print(f"the draft proposes {len(ids):,} of the target's {vocab_size:,} tokens, through a head of its own")
    return len(ids)


def _is(own: Tensor, targets: Tensor) -> bool:
    return own.shape == targets.shape and torch.equal(own.to(targets), targets)
