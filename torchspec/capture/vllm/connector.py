"""The piece of us that runs inside vLLM: a KV connector that copies a prompt's hidden states to shared memory.

vLLM's `extract_hidden_states` method keeps the outputs of the asked layers in a cache of its own, paged like keys and values.
In the step that runs a prompt whole, `wait_for_save` comes after that cache is filled and before the request's answer is
given: the file is complete when the caller hears of the request, so nothing is polled. CPU and CUDA alike, nothing patched.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer
from vllm.v1.kv_cache_interface import HiddenStateCacheSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

from torchspec.capture import shared_memory
from torchspec.capture.vllm.cache import check_layout, prompt_states

# keys of the connector's extra settings
FOLDER, LAYERS, STATES, FP8 = "torchspec_folder", "torchspec_layers", "torchspec_states", "torchspec_fp8"
NAME = "torchspec_name"  # of a request's


@dataclass
class Rows:
    """Where the hidden states of one prompt lie in the cache, and the name of the file that they go to."""

    name: str
    blocks: list[int]
    count: int


@dataclass
class Step(KVConnectorMetadata):
    """From the scheduler to the worker: the prompts that run in this step."""

    prompts: list[Rows] = field(default_factory=list)


def cache_group(specs: list) -> int:
    """Index of the cache group that holds the hidden states: its own, or the only one where all caches are paged alike."""
    own = [i for i, spec in enumerate(specs) if isinstance(spec, HiddenStateCacheSpec)]
    if len(own) != 1 and len(specs) != 1:
        raise ValueError(f"torchspec cannot tell which of {len(specs)} cache groups holds the hidden states; this target is not supported")
    return own[0] if own else 0


class SharedMemoryConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        settings = self._kv_transfer_config.kv_connector_extra_config
        self.folder, self.fp8 = Path(settings[FOLDER]), settings[FP8]
        self.num_layers, self.num_states = settings[LAYERS], settings[STATES]
        self.group = cache_group([group.kv_cache_spec for group in kv_cache_config.kv_cache_groups])

    # the scheduler's side

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return 0, False  # nothing is ever loaded

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        pass

    def build_connector_meta(self, scheduler_output) -> Step:
        step = Step()
        for request in scheduler_output.scheduled_new_reqs:
            extra = request.sampling_params.extra_args or {}
            name = (extra.get("kv_transfer_params") or {}).get(NAME)
            if name is not None:  # warm-up requests have none
                count = scheduler_output.num_scheduled_tokens[request.req_id]
                step.prompts.append(Rows(name, list(request.block_ids[self.group]), count))
        return step

    def request_finished_all_groups(self, request, block_ids):
        return False, None  # its rows are saved: the blocks may go

    # the worker's side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        (name,) = get_layers_from_vllm_config(self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches))
        self.cache = kv_caches[name]  # [blocks, K or K+1, block size, H_t]: the captured layers, and the last one
        check_layout(self.cache, self.num_states, vllm.__version__)

    def wait_for_save(self) -> None:
        if get_tensor_model_parallel_rank() != 0:  # every rank has the whole states
            return
        for rows in self._get_connector_metadata().prompts:
            states = prompt_states(self.cache, rows.blocks, rows.count)  # [L, K or K+1, H_t]
            context = states[:, : self.num_layers].flatten(1)
            shared_memory.put(self.folder, rows.name, context, states[-1, -1], self.num_layers, self.fp8)

    def start_load_kv(self, forward_context, **kwargs) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs) -> None:
        pass

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config) -> str:
        return KVCacheLayout.LBNHC.name  # a token's states lie together
