"""What the forward pass of a micro-batch keeps for its backward pass, counted in values per row, as in block/memory.py.

The first step has a row for each context row and asks with one per chain; each later step has one row per chain. Every step joins the
keys and values of the context with those of its own chain, and keeps the joined copy.
"""

from transformers import PreTrainedConfig


def kept_values(config: PreTrainedConfig, steps: int, chains: int, context: int, compiled: bool) -> int:
    """Values of the compute dtype."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    normed = 2 * width if compiled else 6 * width  # of the token's embedding and of the state
    joined = 2 * width
    mixed = 2 * width + 3 * inner if compiled else 4 * width + 4 * inner  # what the MLP reads, and its own
    outputs = 5 * width  # the last norm in float32, its value twice
    step = 2 * queries + mixed + outputs
    of_chains = steps * step + (steps - 1) * (normed + joined + 2 * keys) + joined + steps * (steps - 1) * 2 * keys
    of_context = normed + joined + 2 * keys + steps * 2 * keys + width
    return chains * of_chains + context * of_context
