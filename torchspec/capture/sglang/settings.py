"""What an SGLang of ours, or somebody else's server, must be told for its states to be whole and to reach us. SGLang is not imported."""

from dataclasses import asdict

from torchspec.capture.base import CaptureSpec
from torchspec.capture.outbox import Delivery
from torchspec.errors import UserError
from torchspec.target.model import load_config

ONE_TOKEN = {"temperature": 0.0, "max_new_tokens": 1}
MODULES = ["*model.norm", "*logits_processor"]  # whose forward the hook sees
HOOK = {"name": "torchspec", "target_modules": MODULES, "hook_factory": "torchspec.capture.sglang.hook:recorder"}


def asked_layers(spec: CaptureSpec) -> list[int]:
    """SGLang counts layers as we do (z-ids), and cannot name the last one: the hook takes that one's output before the final norm."""
    last = load_config(spec.folder, spec.trust_remote_code).num_hidden_layers - 1
    asked = [z for z in spec.layer_ids if z < last]
    if not asked:
        raise UserError(f"layer ids {list(spec.layer_ids)}: SGLang captures the last layer only beside others; add one below it")
    return asked


def settings(layer_ids: list[int], delivery: Delivery) -> dict:
    """Names of SGLang's arguments. layer_ids: `asked_layers`."""
    return {
        "enable_return_aux_hidden_states": True,
        "return_aux_hidden_state_layer_ids": layer_ids,
        "forward_hooks": [HOOK | {"config": asdict(delivery)}],
        "disable_radix_cache": True,  # a cached prefix has no states
        "chunked_prefill_size": -1,  # a prompt runs in one step
        "disable_cuda_graph": True,  # replayed graphs call no hooks
    }


def given(hooks: list[dict] | None) -> dict | None:
    """What our hook was told, among a server's hooks."""
    return next((hook["config"] for hook in hooks or [] if hook["name"] == HOOK["name"]), None)
