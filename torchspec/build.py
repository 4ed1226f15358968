"""From a config to everything that a run is made of. Cheap checks first; the target is loaded last."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer

from torchspec.capture.base import Capture, backend_class
from torchspec.capture.cache import CachedCapture
from torchspec.capture.check import capture_checks
from torchspec.config import DatasetConfig, RunConfig
from torchspec.data.dataset import PromptDataset, open_or_prepare
from torchspec.data.plan import MicroBatch, plan_micro_batches, rank_plan
from torchspec.errors import UserError
from torchspec.fetch import resolve_target
from torchspec.inference import resolve_device, resolve_dtype
from torchspec.log import console
from torchspec.methods.base import Method, method_class
from torchspec.nn.precision import ComputeIn
from torchspec.optim import build_optimizers
from torchspec.target import FrozenTarget


@dataclass
class Run:
    config: RunConfig
    dataset: PromptDataset
    held_out: PromptDataset | None
    plan: list[MicroBatch]  # this rank's micro-batches, all epochs
    method: Method
    model: nn.Module  # float32 masters
    compute: nn.Module  # the same model, computing in model.dtype
    optimizers: list[torch.optim.Optimizer]
    capture: Capture
    held_out_capture: Capture

    @property
    def total_steps(self) -> int:
        return len(self.plan) // self.config.training.draft_accumulation_steps

    @property
    def data_facts(self) -> dict:
        """Facts about the text that the draft learned from; they travel with the draft into every report."""
        manifest = self.dataset.manifest
        return {key: vars(manifest)[key] for key in ("target", "template_hash", "tokenizer_hash", "thinking", "fingerprint", "samples")}


def build(config: RunConfig) -> Run:
    device, dtype = resolve_device(config.model.device), resolve_dtype(config.model.dtype)
    folder = resolve_target(config.model.target_model_path)
    dataset, held_out = open_datasets(config, folder)
    plan = plan_run(config, dataset)
    target = FrozenTarget.load(folder, dtype, device, config.model.trust_remote_code)
    method = build_method(config, target, dataset)
    model = method.build(torch.Generator().manual_seed(config.training.seed)).to(device)
    inner = backend_class(config.inference.inference_engine_type)(folder, method.layer_ids, dtype, device, config.model.trust_remote_code)
    capture_checks(inner, target, [dataset[0]])
    limit = int(config.inference.cache_gib * 2**30)
    held_out_limit = 0 if held_out is None else limit // 8  # evaluation repeats its few samples, training needs the rest
    return Run(
        config, dataset, held_out, plan, method, model, ComputeIn(model, dtype), build_optimizers(model, config.training),
        CachedCapture(inner, limit - held_out_limit), CachedCapture(inner, held_out_limit),
    )  # fmt: skip


def open_datasets(config: RunConfig, folder: Path) -> tuple[PromptDataset, PromptDataset | None]:
    train = open_one(config.dataset.train_data_path, config, folder)
    held_out = None if config.dataset.eval_data_path is None else open_one(config.dataset.eval_data_path, config, folder)
    if held_out is not None and held_out.manifest.fingerprint == train.manifest.fingerprint:
        raise UserError("dataset.eval_data_path holds the very samples of dataset.train_data_path; tau must be measured on held-out text")
    return train, held_out


def open_one(path: str, config: RunConfig, folder: Path) -> PromptDataset:
    data: DatasetConfig = config.dataset
    return open_or_prepare(
        path, Path(config.output_dir) / "prepared", folder, thinking=data.thinking, last_turn_only=data.last_turn_only,
        max_length=data.max_length, min_loss_tokens=data.min_loss_tokens, trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip


def plan_run(config: RunConfig, dataset: PromptDataset) -> list[MicroBatch]:
    training = config.training
    batches = plan_micro_batches(dataset.lengths, training.seed, training.num_epochs, training.micro_batch_size, training.max_batch_tokens)
    return rank_plan(batches, 0, 1, training.draft_accumulation_steps, training.max_steps)


def build_method(config: RunConfig, target: FrozenTarget, dataset: PromptDataset) -> Method:
    tokenizer = AutoTokenizer.from_pretrained(target.folder, trust_remote_code=config.model.trust_remote_code)
    counts = dataset.token_counts(len(target.embedding))
    return method_class(config.draft.method).for_run(config.draft, target, tokenizer, counts)


def print_plan(config: RunConfig) -> None:
    """What the run will be, without loading the target: data is prepared, the draft is counted, nothing is trained."""
    folder = resolve_target(config.model.target_model_path)
    dataset, held_out = open_datasets(config, folder)
    plan = plan_run(config, dataset)
    target = FrozenTarget.load(folder, resolve_dtype(config.model.dtype), "cpu", config.model.trust_remote_code)
    method = build_method(config, target, dataset)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in method.skeleton().parameters())
    training, manifest = config.training, dataset.manifest
    steps = len(plan) // training.draft_accumulation_steps
    planned = [dataset.lengths[list(batch.indices)].sum() for batch in plan]
    feature_bytes = manifest.tokens * len(method.layer_ids) * target.config.hidden_size * (2 if config.model.dtype == "bfloat16" else 4)
    checkpoint_bytes = 12 * parameters  # float32 masters and two moments
    gib = 2.0**30
    rows = {
        "target": f"{folder}, {target.num_layers} layers, width {target.config.hidden_size}, vocabulary {len(target.embedding)}",
        "draft": f"{config.draft.method}, {parameters / 1e6:.1f}M parameters, layers {list(method.layer_ids)} captured",
        "data": f"{manifest.samples} samples, {manifest.tokens:,} tokens, {manifest.mask_share:.0%} supervised; "
        f"held out: {len(held_out) if held_out else 0} samples",
        "steps": f"{steps} of {training.draft_accumulation_steps} micro-batches, {training.num_epochs} epochs; "
        f"micro-batches of {min(planned)} to {max(planned)} tokens, {sum(planned) / len(planned):.0f} on average",
        "memory": f"draft {16 * parameters / gib:.2f} GiB (masters, gradients, moments), features {feature_bytes / gib:.2f} GiB per epoch, "
        f"of which {min(config.inference.cache_gib, feature_bytes / gib):.2f} GiB are kept",
        "disk": f"{checkpoint_bytes / gib:.2f} GiB per checkpoint, at most {training.max_checkpoints + 2} at a time",
    }
    console.print(config.model_dump_json(indent=2), markup=False)
    for name, text in rows.items():
        console.print(f"{name:>8}  {text}", markup=False)
