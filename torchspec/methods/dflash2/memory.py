"""What DFlash2 keeps for its backward pass besides the backbone, counted as in block/memory.py.

convolution     for each tap its input, moved; twice per sublayer, and the slot's own kernels of both
selector        the projected state, the token before, their product; scores in float32 (counts double)
tables          the gradient of tokens after in float32 (counts double) and rounded, that of tokens before
"""

from transformers import PreTrainedConfig

from torchspec.nn.chosen import CHUNK_ELEMENTS

SCORES = 6  # values of float32 per candidate: logit, addition, sum, logarithm, law of the draft and of the target


def conv_values(config: PreTrainedConfig, rows: int, compiled: bool) -> int:
    """In all layers. Compiled layers keep what a product or a convolution reads, once."""
    taps, group, width = config.dflash_config["conv_kernel_size"], config.dflash_config["conv_group_size"], config.hidden_size
    moved = 2 * width if compiled else 2 * taps * width
    return 2 * config.num_hidden_layers * rows * (moved + 2 * taps * width // group)


def selector_values(config: PreTrainedConfig, slots: int) -> int:
    rank, count = config.dflash_config["selector_rank"], config.dflash_config["selector_top_k"]
    return slots * (3 * rank + 2 * SCORES * count) + 4 * config.vocab_size * rank + CHUNK_ELEMENTS
