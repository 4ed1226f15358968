"""From a config to everything that a run is made of. Cheap checks first; the target is loaded last.

Where features come from is handed in: this file knows the engine in its own process, torchspec/launch the workers elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from torchspec.capture.base import Capture
from torchspec.capture.cache import CachedCapture
from torchspec.capture.engine import capture_spec, open_engine
from torchspec.config import RunConfig
from torchspec.console import console
from torchspec.data.config import DatasetConfig
from torchspec.data.dataset import MixedDataset, PromptDataset, check_prepared_as, open_or_prepare, prepared_once
from torchspec.data.encode import Options
from torchspec.data.leak import Leak, find_leak
from torchspec.data.plan import MicroBatch, epoch_ends, plan_micro_batches, rank_plan
from torchspec.data.split import Split
from torchspec.errors import UserError
from torchspec.files.contents import folder_key
from torchspec.methods.base import Method, check_served, method_class
from torchspec.nn.device import resolve_dtype
from torchspec.target.fetch import resolve_target
from torchspec.target.frozen import FrozenTarget
from torchspec.training.distributed import World, parallelise, whole
from torchspec.training.optim import build_optimizers
from torchspec.training.profile import check_window
from torchspec.training.stream import Beside, FeatureStream, InProcess, Source
from torchspec.training.trackers import check_installed

# (config, method, samples of this rank's plan, its device) -> where its features come from, and what it evaluates with
Supply = Callable[[RunConfig, Method, int, torch.device], tuple[Source, Capture]]
CHECKED_SAMPLES = 4  # prompts on which the engine is compared with the target's own files before training starts


@dataclass
class Run:
    config: RunConfig
    dataset: PromptDataset
    held_out: PromptDataset | None
    plan: list[MicroBatch]  # this rank's micro-batches, all epochs
    epoch_ends: frozenset[int]  # steps after which an epoch is complete
    method: Method
    model: nn.Module  # float32 masters, sharded over the ranks
    compute: Callable[..., Tensor]  # the same model, computing in model.dtype
    optimizers: list[torch.optim.Optimizer]
    source: Source  # of the features to train on
    held_out_capture: Capture
    world: World
    leak: Leak | None = None  # of held-out prompts into the training data; the main rank looks

    def stream(self, position: int) -> FeatureStream:
        return FeatureStream(self.dataset, self.source, self.plan, position, self.config.training.prefetch_depth)

    @torch.no_grad()
    def whole_draft(self) -> nn.Module:
        """The draft as it is served, unsharded and in model.dtype: every rank evaluates on its own. No weight is initialised twice."""
        with torch.device("meta"):
            draft = self.method.skeleton()
        dtype, trained = resolve_dtype(self.config.model.dtype), {name for name, _ in draft.named_parameters()}
        values = {name: whole(value).to(dtype if name in trained else value.dtype) for name, value in self.model.state_dict().items()}
        draft.load_state_dict(values, assign=True)
        return draft.to(self.world.device).eval()

    def say(self, text: str) -> None:
        if self.world.is_main:
            console.print(text, markup=False)

    @property
    def total_steps(self) -> int:
        return len(self.plan) // self.config.training.draft_accumulation_steps

    @property
    def data_facts(self) -> dict:
        """Facts about the text that the draft learned from; they travel with the draft into every report."""
        manifest = self.dataset.manifest
        facts = {
            key: vars(manifest)[key]
            for key in ("target", "template_hash", "tokenizer_hash", "thinking", "fingerprint", "known_by", "samples")
        }
        held_out = None if self.held_out is None else self.held_out.manifest.fingerprint
        leak = None if self.leak is None else self.leak.counts()
        return {**facts, "held_out": held_out, "leak": leak, "target_contents": folder_key(self.method.target.folder)}


def in_process(config: RunConfig, method: Method, _samples: int, device: torch.device) -> tuple[Source, Capture]:
    """The engine in this process; Transformers on a CPU of several cores in a thread of its own."""
    capture = open_engine(config, capture_spec(config, method.target.folder, method.layer_ids, device, method.target))
    beside = device.type == "cpu" and torch.get_num_threads() > 1 and config.inference.inference_engine_type == "hf"
    return (Beside if beside else InProcess)(CachedCapture(capture, cache_bytes(config)[0], device)), capture


def cache_bytes(config: RunConfig) -> tuple[int, int]:
    """For features of training and of held-out text: evaluation repeats its few samples, training needs the rest."""
    limit = int(config.inference.cache_gib * 2**30)
    held_out = limit // 8 if config.dataset.holds_out else 0
    return limit - held_out, held_out


def build(config: RunConfig, world: World, supply: Supply = in_process) -> Run:
    device, dtype = world.device, resolve_dtype(config.model.dtype)
    check_installed(config)
    folder = resolve_target(config.model.target_model_path)
    dataset, held_out = open_datasets(config, folder)
    plan, ends = plan_run(config, dataset, world)
    check_window(config, len(plan) // config.training.draft_accumulation_steps)
    looks = held_out is not None and world.is_main
    leak = find_leak(dataset, held_out, folder, config.model.trust_remote_code) if looks else None
    target = FrozenTarget.load(folder, dtype, device, config.model.trust_remote_code)
    method = build_method(config, target, dataset)
    model = method.build(torch.Generator().manual_seed(config.training.seed)).to(device)
    compute = parallelise(model, world, config.training, dtype)
    source, capture = supply(config, method, sum(len(batch.indices) for batch in plan), device)
    if world.is_main:
        capture.verify([dataset[i] for i in range(min(len(dataset), CHECKED_SAMPLES))])
    return Run(
        config, dataset, held_out, plan, ends, method, model, compute, build_optimizers(model, config.training), source,
        CachedCapture(capture, cache_bytes(config)[1], device), world, leak,
    )  # fmt: skip


def open_datasets(config: RunConfig, folder: Path) -> tuple[PromptDataset, PromptDataset | None]:
    paths = {config.dataset.train_data_path: 1.0, **config.dataset.mix}
    sources = [open_one(path, config, folder) for path in paths]
    held_out = open_held_out(list(paths), config, folder)
    if held_out is not None and any(key in source.manifest.known_by for source in sources for key in held_out.manifest.known_by):
        raise UserError("dataset.eval_data_path holds the very samples of a training source; tau must be measured on held-out text")
    return sources[0] if len(sources) == 1 else MixedDataset(sources, list(paths.values())), held_out


def open_one(path: str, config: RunConfig, folder: Path) -> PromptDataset:
    """A source, without what is split off."""
    options = _options(config, held_out=False)
    dataset = open_or_prepare(path, _prepared(config), folder, options)
    check_prepared_as(dataset, options, folder)
    return dataset


def open_held_out(paths: list[str], config: RunConfig, folder: Path) -> PromptDataset | None:
    """paths: of the training text, of which a share may be held out."""
    if config.dataset.eval_share is not None:
        return prepared_once(paths, _prepared(config), folder, _options(config, held_out=True))
    return None if config.dataset.eval_data_path is None else open_one(config.dataset.eval_data_path, config, folder)


def _prepared(config: RunConfig) -> Path:
    return Path(config.output_dir) / "prepared"


def _options(config: RunConfig, held_out: bool) -> Options:
    data: DatasetConfig = config.dataset
    split = None if data.eval_share is None else Split(data.eval_share, held_out)
    return Options(
        data.thinking, data.last_turn_only, data.max_length, data.min_loss_tokens,
        trust_remote_code=config.model.trust_remote_code, split=split,
    )  # fmt: skip


def plan_run(config: RunConfig, dataset: PromptDataset, world: World) -> tuple[list[MicroBatch], frozenset[int]]:
    """This rank's micro-batches, and the steps after which an epoch is complete."""
    training, accumulation = config.training, config.training.draft_accumulation_steps
    batches = plan_micro_batches(
        dataset.lengths, training.seed, training.num_epochs, training.micro_batch_size, training.max_batch_tokens,
        shuffle=config.dataset.shuffle_dataset, parts=dataset.parts,
    )  # fmt: skip
    plan = rank_plan(batches, world.rank, world.size, accumulation, training.max_steps)
    return plan, epoch_ends(batches, world.size * accumulation)


def build_method(config: RunConfig, target: FrozenTarget, dataset: PromptDataset) -> Method:
    tokenizer = AutoTokenizer.from_pretrained(target.folder, trust_remote_code=config.model.trust_remote_code)
    method = method_class(config.draft.method).for_run(config.draft, target, tokenizer, dataset)
    check_served(config.evaluation.served, method)
    return method
