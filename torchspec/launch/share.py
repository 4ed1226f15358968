"""What a draft's forward costs beside the target's, in parameters that a token meets.

    share = (draft's own + head that it proposes from) / (target's own, of its experts those that a token is sent to, + head)

Embeddings are looked up, not multiplied with, and count in neither. It is the cost of one row in one forward; a DFlash or P-EAGLE draft
takes one forward per block, an EAGLE-3 draft one per drafted token. The target's parameters are counted in its files as they are
stored. Five layers of Qwen3-8B's own shape, the default, are at 22% of Qwen3-8B.
"""

from math import prod

from safetensors import safe_open

from torchspec.launch.memory import count_parameters
from torchspec.methods.base import Method
from torchspec.methods.taken_over import named
from torchspec.target.files import tensor_files
from torchspec.target.frozen import FrozenTarget

MOST = 0.1  # more is worth a look: it eats into what accepted tokens save
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
NOT_OF_TEXT = ("visual", "vision", "audio", "mtp.", "embed_tokens", "lm_head")  # towers; layers that predict further tokens; tables


def share(method: Method) -> float:
    rows = method.config.to_dict().get("draft_vocab_size") or len(method.target.head)
    return (count_parameters(method) + rows * method.target.head.shape[1]) / active_parameters(method.target)


def active_parameters(target: FrozenTarget) -> int:
    values = named(target.config)
    experts, chosen = (next((values[key] for key in keys if values.get(key)), 1) for keys in (EXPERTS, CHOSEN))
    total = target.head.numel()
    for file in set(tensor_files(target.folder).values()):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if not any(part in name for part in NOT_OF_TEXT):
                    shape = tensors.get_slice(name).get_shape()
                    total += prod(shape) * chosen // experts if _of_experts(name, shape, experts) else prod(shape)
    return total


def _of_experts(name: str, shape: list[int], experts: int) -> bool:
    """One expert's own tensor, or one of all experts."""
    return ".experts." in name or (experts > 1 and len(shape) == 3 and shape[0] == experts)
