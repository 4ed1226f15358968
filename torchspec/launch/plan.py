"""`torchspec train --plan`: what a run will be. Data is prepared and the draft counted; nothing is loaded that computes."""

import json
from dataclasses import dataclass

import torch

from torchspec.config import RunConfig
from torchspec.console import console, print_rows
from torchspec.errors import UserError
from torchspec.launch.memory import count_parameters, key_value_bytes, rank_memory
from torchspec.launch.needs import needs
from torchspec.launch.share import MOST, share
from torchspec.methods.base import Method
from torchspec.methods.config import SLIDING
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.target.fetch import resolve_target
from torchspec.target.frozen import FrozenTarget
from torchspec.training.build import build_method, open_datasets, plan_run
from torchspec.training.distributed import World

GIB = 2.0**30
ROOM = 0.93  # share of a GPU's memory that a run can fill: the rest goes to libraries, and to gaps between tensors
LIGHTER = "fewer draft.num_layers, a draft.draft_vocab_size (not dflash) or a smaller draft.intermediate_size make it lighter"
CHECKPOINT_BYTES = 12  # per parameter on disk: masters and moments


@dataclass(frozen=True)
class Plan:
    """What matters, and what is there for whoever asks: name -> a line, and numbers."""

    lines: dict[str, str]
    further: dict[str, str]
    numbers: dict[str, object]  # bytes, tokens, steps
    missing: list[str]  # extras, each with what installs it

    def to_json(self, config: RunConfig) -> str:
        values = {**self.lines, **self.further, "missing": self.missing, "numbers": self.numbers, "config": config.model_dump(mode="json")}
        return json.dumps(values, indent=2)


def print_plan(config: RunConfig, as_json: bool = False) -> None:
    plan = plan_of(config)
    if as_json:
        return console.print(plan.to_json(config), markup=False)
    print_rows(plan.lines | ({"missing": "; ".join(plan.missing)} if plan.missing else {}))


def plan_of(config: RunConfig) -> Plan:
    folder, training, inference = resolve_target(config.model.target_model_path), config.training, config.inference
    dataset, held_out = open_datasets(config, folder)
    plan, _ = plan_run(config, dataset, World(0, training.num_ranks, torch.device("cpu")))
    dtype = resolve_dtype(config.model.dtype)
    target = FrozenTarget.load(folder, dtype, "cpu", config.model.trust_remote_code)
    method, manifest = build_method(config, target, dataset), dataset.manifest
    parameters = count_parameters(method)
    steps, planned = len(plan) // training.draft_accumulation_steps, [int(dataset.lengths[list(batch.indices)].sum()) for batch in plan]
    values = len(method.layer_ids) * target.config.hidden_size  # of one token's features
    wire_bytes = values + 4 * len(method.layer_ids) if inference.transfer_dtype == "fp8" else values * dtype.itemsize
    feature_bytes, longest = manifest.tokens * values * dtype.itemsize, int(dataset.lengths.max())
    device, documents = resolve_device(config.model.device), max(len(batch.indices) for batch in plan)
    parts = rank_memory(config, method, documents, max(planned), longest, device)
    lines = {
        "target": f"{folder}, {target.num_layers} layers, width {target.config.hidden_size}, vocabulary {len(target.embedding)}",
        "draft": f"{config.draft.method}, {parameters / 1e6:.1f}M parameters, layers {list(method.layer_ids)} captured{proposed(method)}",
        "serving": serving(method),
        "data": f"{manifest.samples} samples, {manifest.tokens:,} tokens, {manifest.mask_share:.0%} supervised; "
        f"held out: {len(held_out) if held_out else 0} samples",
        "topology": topology(config) + wire(config, wire_bytes, longest),
        "steps": f"{steps} of {training.num_ranks} x {training.draft_accumulation_steps} micro-batches, {training.num_epochs} epochs; "
        f"micro-batches of {min(planned)} to {max(planned)} tokens, {sum(planned) / len(planned):.0f} on average",
        "memory": memory(parts, device),
        "disk": f"{CHECKPOINT_BYTES * parameters / GIB:.2f} GiB per checkpoint, at most {training.max_checkpoints + 2} at a time"
        + replay(config, manifest.tokens * wire_bytes),
    }
    further = {
        "shape": shape(method),
        "features": f"{feature_bytes / GIB:.2f} GiB per epoch, of which {min(inference.cache_gib, feature_bytes / GIB):.2f} GiB are kept",
    }
    numbers = {
        "parameters": parameters, "steps": steps, "tokens": manifest.tokens, "memory": parts, "wire_bytes_per_token": wire_bytes,
        "feature_bytes": feature_bytes, "checkpoint_bytes": CHECKPOINT_BYTES * parameters,
    }  # fmt: skip
    return Plan(lines, further, numbers, [need.lacking for need in needs(config) if need.lacking])


def proposed(method: Method) -> str:
    coverage = method.config.to_dict().get("draft_vocab_coverage")
    return "" if coverage is None else f"; proposes {method.config.draft_vocab_size:,} tokens, {coverage:.2%} of the supervised text"


def wire(config: RunConfig, size: int, longest: int) -> str:
    """size: bytes per token. longest: tokens of a sample."""
    inference = config.inference
    if inference.in_trainer:
        return ""
    way, waiting = "from the servers" if inference.servers else inference.transfer, under_way(config, longest * size) / GIB
    return f"; {way}, {size:,} bytes per token, {waiting:.3f} GiB under way at one end"


def replay(config: RunConfig, size: int) -> str:
    """size: bytes of all samples."""
    inference = config.inference
    if not inference.replay_dir:
        return ""
    return f"; replay {size / 1e12:.3f} TB for all samples, at most {inference.replay_gib:g} GiB in {inference.replay_dir}"


def shape(method: Method) -> str:
    config, rope = method.config, method.config.rope_parameters
    window = config.to_dict().get("sliding_window")
    slides = f", window {window} in {config.layer_types.count(SLIDING)} of them" if window else ""
    heads = f"{config.num_attention_heads} heads of {config.head_dim}, {config.num_key_value_heads} with keys"
    layers = f"{config.num_hidden_layers} layer(s){slides}"
    return f"{layers}, {heads}, MLP {config.intermediate_size}, RoPE {rope['rope_type']} with theta {rope['rope_theta']:g}"


def serving(method: Method) -> str:
    """What the draft adds to a server, with advice where it is much."""
    part = share(method)
    text = (
        f"{key_value_bytes(method.config, method.target.head.itemsize):,} bytes of keys and values per token; a forward of the draft costs "
        f"{part:.1%} of the target's"
    )
    return text if part <= MOST else f"{text}, more than {MOST:.0%}: {LIGHTER}"


def memory(parts: dict[str, int], device: torch.device) -> str:
    """One line, with advice where a GPU has less."""
    total = sum(parts.values())
    text = f"per rank {total / GIB:.2f} GiB: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    if device.type != "cuda":
        return text
    there = torch.cuda.get_device_properties(device).total_memory
    text += f"; {there / GIB:.1f} GiB are there"
    return (
        text if total < ROOM * there else text + ", too few: lower training.micro_batch_size, or set training.activation_checkpointing=true"
    )


def under_way(config: RunConfig, largest: int) -> int:
    """Most bytes that lie at a worker, server or rank; refused where Mooncake's segment is smaller. largest: of the longest sample."""
    training, inference = config.training, config.inference
    per_rank = (training.prefetch_depth + training.micro_batch_size) * largest
    most = max(per_rank, per_rank * training.num_ranks // max(inference.num_workers, len(inference.servers)))
    if inference.transfer == "mooncake" and most > inference.mooncake.segment_gib * GIB:
        raise UserError(
            f"inference.mooncake.segment_gib={inference.mooncake.segment_gib:g} cannot hold {most / GIB:.2f} GiB that may be under way; "
            "raise it, or lower training.prefetch_depth"
        )
    return most


def topology(config: RunConfig) -> str:
    """One line, or a refusal where this machine is the whole cluster and lacks the devices."""
    training, inference, device = config.training, config.inference, resolve_device(config.model.device)
    ranks = f"{training.num_ranks} trainer rank{'s' if training.num_ranks > 1 else ''}"
    servers = f"{len(inference.servers)} running {inference.inference_engine_type} server(s)"
    if not config.distributed:
        return f"one process: {servers if inference.servers else inference.inference_engine_type} captures and the draft trains on {device}"
    wanted = training.num_ranks + inference.num_workers * inference.gpus_per_worker
    if device.type == "cuda" and config.cluster.address is None and wanted > torch.cuda.device_count():
        raise UserError(
            f"training.num_ranks={training.num_ranks} and inference.num_workers={inference.num_workers} x gpus_per_worker="
            f"{inference.gpus_per_worker} need {wanted} GPUs, this machine has {torch.cuda.device_count()}; lower one, or join a cluster "
            "with cluster.address"
        )
    if inference.servers:
        return f"{ranks} ({training.fsdp_strategy}), each asks {servers}"
    if inference.num_workers == 0:
        return f"{ranks} ({training.fsdp_strategy}), each captures with {inference.inference_engine_type} in its own process"
    workers = (
        f"{inference.num_workers} {inference.inference_engine_type} capture workers of {inference.gpus_per_worker} {device.type} device(s)"
    )
    return f"{workers} -> {inference.transfer_dtype} dtype -> {ranks} ({training.fsdp_strategy})"
