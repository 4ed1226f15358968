"""What the forward pass of a micro-batch keeps for its backward pass, counted in values per row and layer.

    norm of width w       its input in float32 (counts double), the normed value          3 w, and its output where a product reads it
    attention             q, k, v as rotated and joined, and what it returns
    MLP                   gate, up, SiLU of the gate, their product                       4 I

Compiled layers keep inputs of products and compute norms, SiLU and rotation again. On an H100 this was within 1% of what a step of
Qwen3-8B's draft allocates, compiled or not (benchmarks/RESULTS.md).
"""

from transformers import PreTrainedConfig


def kept_values(config: PreTrainedConfig, rows: int, context: int, compiled: bool) -> int:
    """Values of the compute dtype, for so many draft rows and context rows."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    per_layer = 4 * width + 3 * queries + 3 * keys + 3 * inner if compiled else 8 * width + 5 * queries + 5 * keys + 4 * inner
    per_layer_of_context = 3 * keys if compiled else 5 * keys
    embedded_and_last_norm, joined_and_its_norm = width + 4 * width, 4 * width
    layers = config.num_hidden_layers
    return rows * (layers * per_layer + embedded_and_last_norm) + context * (layers * per_layer_of_context + joined_and_its_norm)
