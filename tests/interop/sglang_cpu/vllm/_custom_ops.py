"""The rotary kernel that SGLang calls on CPUs without AMX, in plain torch."""

import torch


def rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox):
    """In place. positions [T], query and key [T, heads * head_size], cos_sin_cache [positions, 2 * half]."""
    half = cos_sin_cache.shape[-1] // 2
    table = cos_sin_cache[positions.reshape(-1)].float()[:, None]  # [T, 1, 2 * half]
    cos, sin = table[..., :half], table[..., half:]
    for tensor in (query, key):
        rotated = tensor.view(len(table), -1, head_size)[..., : 2 * half]  # a view: writing to it writes to the tensor
        pairs = rotated.float().unflatten(-1, (2, half) if is_neox else (half, 2))
        first, second = pairs.unbind(-2 if is_neox else -1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        rotated.copy_(torch.cat(turned, -1) if is_neox else torch.stack(turned, -1).flatten(-2))
