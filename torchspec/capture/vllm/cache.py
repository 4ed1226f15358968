"""vLLM's cache of hidden states: how it is laid out, which has changed between versions, and where a prompt's rows lie in it."""

from torch import Tensor

OLDEST = "0.29"  # the first version with this layout; up to 0.28 it was [blocks, block size, S, H_t]


def check_layout(cache: Tensor, states: int, version: str) -> None:
    """cache [blocks, S, block size, H_t], where S = `states` are kept of every token."""
    if cache.dim() != 4 or cache.shape[1] != states:
        raise ValueError(
            f"torchspec: vLLM {version} keeps hidden states as {list(cache.shape)} and not as [blocks, {states}, block size, width]; "
            f"capture needs vLLM {OLDEST} or newer: pip install --upgrade 'vllm>={OLDEST}'"
        )


def prompt_states(cache: Tensor, blocks: list[int], count: int) -> Tensor:
    """What lies in these blocks of the first `count` tokens, [L, S, H_t]."""
    return cache[blocks].transpose(1, 2).flatten(0, 1)[:count]
