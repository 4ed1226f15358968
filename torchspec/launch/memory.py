"""What a trainer rank will hold in its device's memory at its largest micro-batch, part by part: the parts add up to the peak."""

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from torchspec.config import RunConfig
from torchspec.methods.base import Method
from torchspec.methods.blocks import padded
from torchspec.target.files import tensor_files
from torchspec.target.frozen import FrozenTarget
from torchspec.training.distributed import compiles

MASTER_BYTES = 12  # per parameter of the draft: float32 masters and two moments
GRADIENT_BYTES = 4  # per parameter, where earlier micro-batches of the step have left theirs


def rank_memory(config: RunConfig, method: Method, documents: int, tokens: int, longest: int, device: torch.device) -> dict[str, int]:
    """Bytes of each part. documents, tokens: of the largest micro-batch; longest: tokens of the longest document."""
    training, size = config.training, method.target.head.itemsize
    parameters = count_parameters(method)
    held = parameters // (training.num_ranks if training.fsdp_strategy == "FULL_SHARD" else 1)
    blocks = padded(min(config.draft.num_anchors, longest), device.type == "cuda")
    features = len(method.layer_ids) * method.target.config.hidden_size * size  # of one token
    return {
        "masters and moments": MASTER_BYTES * held,
        "gradients": GRADIENT_BYTES * held if training.draft_accumulation_steps > 1 else 0,
        f"{config.model.dtype} copy": 0 if size == 4 else size * parameters,
        "frozen embedding and head": target_bytes(method.target),
        "activations and loss": size * method.kept_values(documents, blocks, tokens, compiles(training, device)),
        "features": features * (tokens + training.prefetch_depth * longest),
        "target": weight_bytes(method.target) if config.inference.in_trainer else 0,
    }


def count_parameters(method: Method) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in method.skeleton().parameters())


def key_value_bytes(config: PreTrainedConfig, size: int) -> int:
    """What a draft's cache takes per token of the context, in all layers; those that slide keep no more tokens than their window."""
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * size


def target_bytes(target: FrozenTarget) -> int:
    tied = target.head is target.embedding
    return target.embedding.nbytes + (0 if tied else target.head.nbytes)


def weight_bytes(target: FrozenTarget) -> int:
    """The target's own weights in the run's dtype, counted from the heads of its files."""
    values = 0
    for file in set(tensor_files(target.folder).values()):
        with safe_open(file, framework="pt") as tensors:
            values += sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118 - no mapping
    return values * target.head.itemsize
