"""What the forward pass of a micro-batch keeps for its backward pass, counted in values per row and layer as in block/memory.py.

Rows of the context are rows of every layer, as mask rows are; the first layer joins the token's embedding with the state, both normed.
"""

from transformers import PreTrainedConfig


def kept_values(config: PreTrainedConfig, rows: int, scored: int, compiled: bool) -> int:
    """Values of the compute dtype. rows: of the context and behind it; scored: those that the last norm is taken of."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    per_layer = 4 * width + 3 * queries + 3 * keys + 3 * inner if compiled else 8 * width + 5 * queries + 5 * keys + 4 * inner
    joined = 4 * width if compiled else 7 * width
    return rows * (config.num_hidden_layers * per_layer + joined) + scored * 5 * width
