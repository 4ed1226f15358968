"""What the lattice keeps for the backward pass, beside the backbone's."""

from transformers import PreTrainedConfig

from torchspec.nn.losses import CUDA_CHUNK_ROWS


def lattice_values(config: PreTrainedConfig, blocks: int, vocabulary: int) -> int:
    """Values of the compute dtype for so many blocks: per candidate its embedding, norms (float32 counts double), q, k, v, the gradient of
    the bias, both halves of the MLP, and the three parts of a factor; per slot the normaliser's gradient; and a chunk of logits in float32.
    """
    of, slots = config.dflash_config, config.block_size - 1
    width, factors = of["lilicorr_hidden_size"] or config.hidden_size, of["lilicorr_factor_dim"]
    candidates = slots * of["lilicorr_candidate_topk"]
    per_layer = 11 * width + 3 * int(width * of["lilicorr_mlp_ratio"]) + of["lilicorr_num_heads"] * candidates
    per_candidate = config.hidden_size + 7 * width + of["lilicorr_num_layers"] * per_layer + 10 * width + 6 * factors
    return blocks * (candidates * per_candidate + 2 * slots * config.hidden_size) + 3 * CUDA_CHUNK_ROWS * vocabulary
