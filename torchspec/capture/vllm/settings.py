"""What a vLLM of ours, or somebody else's server, must be told for its states to be whole and to reach us. vLLM is not imported."""

from dataclasses import asdict

from torchspec.capture.base import CaptureSpec
from torchspec.capture.outbox import Delivery
from torchspec.target.model import load_config

DELIVERY = "torchspec"  # key of the connector's extra settings, and of what a server's answer says
NAME = "torchspec_name"  # of a request's states


def settings(spec: CaptureSpec, delivery: Delivery) -> dict:
    """Names of vLLM's arguments. It counts layers that have run: the output of layer z is its id z + 1, the last layer's is N."""
    config = load_config(spec.folder, spec.trust_remote_code)
    states = sorted({z + 1 for z in spec.layer_ids} | {config.num_hidden_layers})  # a method may want the last layer itself
    longest = min(spec.max_length + 1, config.max_position_embeddings)
    return {
        "max_model_len": longest,
        "max_num_batched_tokens": max(2048, longest),  # a prompt runs in one step
        "enable_prefix_caching": False,  # a cached prefix has no states
        "enable_chunked_prefill": False,
        "enforce_eager": True,
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": states}},
        },
        "kv_transfer_config": {
            "kv_connector": "OutboxConnector",
            "kv_connector_module_path": "torchspec.capture.vllm.connector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {DELIVERY: asdict(delivery)},
        },
    }
