"""The piece of us that runs inside vLLM: a KV connector that leaves a prompt's hidden states in an outbox.

vLLM's `extract_hidden_states` method keeps the outputs of the asked layers in a cache of its own, paged like keys and values.
In the step that runs a prompt whole, `wait_for_save` comes after that cache is filled and before the request's answer is
given: the file is complete when the caller hears of the request, so nothing is polled. CPU and CUDA alike, nothing patched.
"""

from dataclasses import asdict, dataclass, field

import torch
import vllm
from vllm.config import get_layers_from_vllm_config
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer
from vllm.v1.kv_cache_interface import HiddenStateCacheSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

from torchspec.capture.outbox import Delivery, Outbox
from torchspec.capture.vllm.cache import check_layout, prompt_states
from torchspec.capture.vllm.settings import DELIVERY, NAME


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


def asked_name(sampling) -> str | None:
    """Of the states that a request wants; warm-up requests and other users want none."""
    extra = sampling.extra_args or {}
    return (extra.get("kv_transfer_params") or {}).get(NAME)


class OutboxConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self.delivery = Delivery(**self._kv_transfer_config.kv_connector_extra_config[DELIVERY])
        self.states = vllm_config.speculative_config.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids
        self.group = cache_group([group.kv_cache_spec for group in kv_cache_config.kv_cache_groups])

    # the scheduler's side

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return 0, False  # nothing is ever loaded

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        pass

    def build_connector_meta(self, scheduler_output) -> Step:
        step = Step()
        for request in scheduler_output.scheduled_new_reqs:
            name = asked_name(request.sampling_params)
            if name is not None:
                count = scheduler_output.num_scheduled_tokens[request.req_id]
                step.prompts.append(Rows(name, list(request.block_ids[self.group]), count))
        return step

    def request_finished_all_groups(self, request, block_ids):
        """Its rows are saved, so the blocks may go. Who asked for states is told where they are."""
        return False, None if asked_name(request.sampling_params) is None else {DELIVERY: asdict(self.delivery)}

    # the worker's side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        (name,) = get_layers_from_vllm_config(self._vllm_config, CacheOnlyAttentionLayer, list(kv_caches))
        self.cache = kv_caches[name]  # [blocks, K or K+1, block size, H_t]: the captured layers, and the last one
        check_layout(self.cache, len(self.states), vllm.__version__)
        first = get_tensor_model_parallel_rank() == 0  # every rank has the whole states
        self.outbox = Outbox(self.delivery, self._vllm_config.model_config.model) if first else None

    def wait_for_save(self) -> None:
        if self.outbox is None:
            return
        for rows in self._get_connector_metadata().prompts:
            states = prompt_states(self.cache, rows.blocks, rows.count)  # [L, K or K+1, H_t]
            self.outbox.put(rows.name, states[:, : len(self.delivery.layer_ids)].flatten(1), states[-1, -1])

    def start_load_kv(self, forward_context, **kwargs) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs) -> None:
        pass

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config) -> str:
        return KVCacheLayout.LBNHC.name  # a token's states lie together
