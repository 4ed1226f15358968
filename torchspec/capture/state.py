"""What a target remembers of the text it has read, and how it forgets rejected tokens.

Attention keeps a row for each token: rejected rows are cropped. A recurrence or a short convolution keeps a sum of all that it has read:
it is copied before a verification and put back after it, and what was accepted is read again. Transformers records the past of
convolutions and windows (`activate_past_recording`), but of no recurrence, so that its `crop` cannot do this.
"""

from copy import deepcopy

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from torchspec.errors import UserError

States = list[dict]  # of each layer of a cache: all that no crop brings back


def layer_kinds(config: PretrainedConfig) -> set[type]:
    """Of the target's cache, as Transformers would make it; a layer that keeps nothing (an MLP, keys of another layer) is of no kind."""
    return {type(layer) for layer in _layers(config) if isinstance(layer, (CacheLayerMixin, LinearAttentionCacheLayerMixin))}


def attention_alone(config: PretrainedConfig) -> bool:
    return layer_kinds(config) <= {DynamicLayer, DynamicSlidingWindowLayer}


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """Keeps all rows, of sliding layers too: what slid out could not come back when drafts are rejected. The masks slide."""
    if attention_alone(config):
        return DynamicCache()
    cache = DynamicCache(config=config)
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    return cache


def length(cache: DynamicCache) -> int:
    """Tokens that have been read: the cache's own count is of its first layer, which may be a recurrence."""
    return max((layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin)), default=0)


@torch.inference_mode()
def states(cache: DynamicCache) -> States:
    return [deepcopy({name: value for name, value in vars(layer).items() if name not in _rows(layer)}) for layer in cache.layers]


def put_back(cache: DynamicCache, before: States, tokens: int) -> None:
    """As it was when `before` was taken, `tokens` ago; the copies are the cache's from now on."""
    for layer, kept in zip(cache.layers, before, strict=True):
        if _rows(layer):
            DynamicLayer.crop(layer, -tokens)
        vars(layer).update(kept)


def _rows(layer) -> tuple[str, ...]:
    """What is cropped: keys and values, where there is one for each token."""
    return ("keys", "values") if isinstance(layer, DynamicLayer) and not layer.is_sliding else ()


def _layers(config: PretrainedConfig) -> list:
    try:
        return DynamicCache(config=config).layers
    except KeyError as kind:
        raise UserError(
            f"the target's layers of type {kind} have no cache in Transformers, so that it cannot be decoded in this process; use an engine"
        ) from None
