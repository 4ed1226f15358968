"""The target as the draft and the data see it: template, thinking mode, RoPE, head, layer ids, mask token."""

from dataclasses import replace
from pathlib import Path

from torchspec.chat.format import ChatFormat
from torchspec.config import RunConfig
from torchspec.data.dataset import PromptDataset
from torchspec.doctor.finding import Finding
from torchspec.doctor.machine import enough_space
from torchspec.launch.memory import GRADIENT_BYTES, MASTER_BYTES, count_parameters, key_value_bytes, target_bytes, weight_bytes
from torchspec.launch.plan import CHECKPOINT_BYTES, LIGHTER, shape
from torchspec.launch.share import MOST, share
from torchspec.methods.base import Method
from torchspec.nn.device import resolve_dtype
from torchspec.target.frozen import FrozenTarget
from torchspec.training.build import build_method

HELLO = [{"role": "user", "content": "Hello."}]


def template(config: RunConfig, folder: Path) -> list[Finding]:
    mode = config.dataset.thinking
    chat = ChatFormat.load(folder, mode, False, config.model.trust_remote_code)
    on, off = (replace(chat, thinking=thinking).render(HELLO, add_generation_prompt=True) for thinking in (True, False))
    stop = ", ".join(map(str, sorted(chat.stop_ids))) or "none: name eos_token_id in generation_config.json"
    return [Finding("target", "chat template", f"{chat.template_hash}, stop ids {stop}"), thinking_mode(on != off, mode)]


def thinking_mode(switchable: bool, mode: bool | None) -> Finding:
    named = {None: "the template's own", True: "on", False: "off"}[mode]
    if switchable and mode is None:
        return Finding("target", "thinking", named, "look", "the template knows both modes: set dataset.thinking to the one you will serve")
    if not switchable and mode is not None:
        return Finding("target", "thinking", named, "look", "the template ignores the mode: leave dataset.thinking out")
    return Finding("target", "thinking", named)


def build(config: RunConfig, folder: Path, dataset: PromptDataset) -> tuple[FrozenTarget, Method]:
    target = FrozenTarget.load(folder, resolve_dtype(config.model.dtype), "cpu", config.model.trust_remote_code)
    return target, build_method(config, target, dataset)


def draft(config: RunConfig, target: FrozenTarget, method: Method) -> list[Finding]:
    head = "tied to the embedding" if target.head is target.embedding else "its own"
    size = f"{count_parameters(method) / 1e6:.1f}M parameters, up to {method.block_size} tokens per target forward"
    return [
        Finding("target", "LM head", f"{head}, vocabulary {len(target.embedding)}"),
        Finding("target", "scales", law(target)),
        Finding("target", "layer ids", f"{list(method.layer_ids)} of {target.num_layers} layers"),
        Finding("target", "draft", f"{config.draft.method}, {size}"),
        Finding("target", "draft's shape", shape(method)),
        cost(method),
    ]


def cost(method: Method) -> Finding:
    """One row of the draft beside one of the target, as launch/share.py counts."""
    part, cache = share(method), key_value_bytes(method.config, method.target.head.itemsize)
    found = f"{part:.1%} of the target's forward, {cache:,} bytes of keys and values per token"
    return Finding("target", "draft's cost", found) if part <= MOST else Finding("target", "draft's cost", found, "look", LIGHTER)


def law(target: FrozenTarget) -> str:
    """What the target does to a row of its embedding, and to its logits."""
    scaled = "the rows more than scaled" if target.embedding_scale is None else f"rows times {target.embedding_scale:g}"
    capped = "" if target.law.cap is None else f", capped at {target.law.cap:g}"
    return f"{scaled}, logits times {target.law.scale:g}{capped}"


def space(config: RunConfig, target: FrozenTarget, method: Method) -> list[Finding]:
    """Whether one trainer rank fits into memory, and its checkpoints onto the disk."""
    weights = weight_bytes(target) if config.inference.in_trainer else target_bytes(target)
    memory, files = (MASTER_BYTES + GRADIENT_BYTES) * count_parameters(method) + weights, CHECKPOINT_BYTES * count_parameters(method)
    return enough_space(config, memory, files * (config.training.max_checkpoints + 2))
