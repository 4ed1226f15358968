"""Drafts that pip's speculators trains, by its own parts: config, model, losses, optimizers, schedule, clipping, files.

Its command needs a GPU (batches go to a device number, its timer to an accelerator), so the few lines of its loop stand in
train_step_peer.py. All settings are its defaults (Muon at 1e-3, linear decay to zero, D-PACE and cross-entropy for DFlash, KL for the
others, 512 anchors) but for those named here: what a CPU can run, and the size of the draft, which is that of ours: layers, captured
layers, ranks, five tokens at a time, EAGLE-3's vocabulary, and the mask token, for which it would take one that ends every answer here.
"""

import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch
from family import DSPARK, score
from learning import Setting
from train_step_peer import inputs, take_step
from transformers import get_linear_schedule_with_warmup

from torchspec.config import RunConfig
from torchspec.decode.pair import load_pair
from torchspec.methods.vocabulary import frequent_vocabulary
from torchspec.nn.device import resolve_device
from torchspec.target.fetch import resolve_target
from torchspec.training.build import Run, build
from torchspec.training.distributed import World

SHAPE = {"num_layers": 2, "target_layer_ids": [2, 15, 28]}  # in its count, which is ours plus one
ON_A_CPU = {"draft_attn_impl": "sdpa", "loss_implementation": "eager"}  # its fastest attention there; its fused losses are Triton's
AS_MANY_ANCHORS = {"max_anchors": 192}  # ours: 96 for each of two documents; its 512 are more than most pairs have tokens to begin at
OUR_RATE = AS_MANY_ANCHORS | {"lr": 3e-3}  # its authors leave the rate to whoever knows the batch; ours was chosen for this one
DFLASH = {"speculator_type": "dflash", "block_size": 6}
MARKOV = {"speculator_type": "dspark", "block_size": 5, "markov_rank": 64}
DFLASH2 = {"speculator_type": "dflash2", "block_size": 6, "selector_rank": 64, "selector_top_k": 8}
# without a window of 2,048 tokens, longer than any text here, which our reader takes for what SGLang cannot serve
EAGLE3 = {"speculator_type": "eagle3", "num_layers": 1, "ttt_steps": 5, "draft_vocab_size": 4000, "full_attention_indices": [0]}
RECIPES = {
    "dflash": DFLASH,
    "dflash-192": DFLASH | AS_MANY_ANCHORS,
    "dflash-192-3e-3": DFLASH | OUR_RATE,
    "dspark": MARKOV,
    "dspark-192": MARKOV | AS_MANY_ANCHORS,
    "dspark-192-3e-3": MARKOV | OUR_RATE,
    "dflash2": DFLASH2,
    "dflash2-192": DFLASH2 | AS_MANY_ANCHORS,
    "dflash2-192-3e-3": DFLASH2 | OUR_RATE,
    "eagle3": EAGLE3,
    "eagle3-3e-3": EAGLE3 | {"lr": 3e-3},
}


class Peer:
    """One of its recipes, trained on our batches and scored as ours are."""

    def __init__(self, name: str, folder: Path):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # behind our own environment: it borrows our torch and transformers
        self.name = name
        self.setting = Setting(f"speculators-{name}", DSPARK)  # whose features are those of its layers and of the last one

    def measure(self, steps: int, seed: int) -> dict:
        config = self.setting.config(steps, seed, f"inference.replay_dir={self.setting.features(seed)}")
        shutil.rmtree(config.output_dir, ignore_errors=True)
        target = resolve_target(config.model.target_model_path)
        draft = Path(config.output_dir) / "draft"
        seconds = self.train(config, target, draft)
        pair = load_pair(draft, str(target), config.model.dtype, config.model.device, False)
        return {"training_steps": steps, "seconds": seconds, **score(pair, self.setting.held_out(pair, steps, seed))}

    def train(self, config: RunConfig, target: Path, draft: Path) -> float:
        """Writes the draft in its own format. -> seconds"""
        from speculators.train.trainer import TrainerConfig

        run = build(config, World(0, 1, resolve_device(config.model.device)))
        args = self.arguments(target, run.method.mask_token_id)
        torch.manual_seed(config.training.seed)
        model = self.build(args, run)
        asked, _ = type(model).get_trainer_kwargs(**vars(args))
        settings = {name: value for name, value in vars(args).items() if name in TrainerConfig._fields}
        seconds = fit(model, run, asked, TrainerConfig(**{**settings, "max_steps": run.total_steps, "num_epochs": args.epochs}))
        model.save_pretrained(draft)
        return seconds

    def arguments(self, target: Path, mask_token_id: int) -> Namespace:
        from speculators.train.config.schema import TrainConfig

        given = {"verifier_name_or_path": str(target), "mask_token_id": mask_token_id, **SHAPE, **ON_A_CPU, **RECIPES[self.name]}
        return Namespace(**TrainConfig.from_flat(given).flatten())

    def build(self, args: Namespace, run: Run) -> torch.nn.Module:
        from speculators.model import SpeculatorModel
        from speculators.train.cli import build_draft_model

        kind, vocab_size = SpeculatorModel.registry[args.speculator_type], len(run.method.target.head)
        if args.draft_vocab_size is None:
            return build_draft_model(args, kind, None, None, vocab_size)
        kept = frequent_vocabulary(run.method.target, run.stream(0).dataset, args.draft_vocab_size)[0].ids
        held = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, kept, True)
        return build_draft_model(args, kind, held, kept - torch.arange(len(kept)), len(kept))


def fit(model: torch.nn.Module, run: Run, asked: dict, config) -> float:
    """asked: what its recipe gives to the model's forward; config: of its trainer. -> seconds, reading the features included"""
    from speculators.train.optimizers import build_optimizers
    from speculators.train.trainer import _resolve_scheduler_steps

    optimizers, (warm_up, total) = build_optimizers(model, config), _resolve_scheduler_steps(config, run.total_steps)
    schedules = [get_linear_schedule_with_warmup(optimizer, warm_up, total) for optimizer in optimizers]
    width, started = run.method.target.head.shape[1], time.perf_counter()
    model.train()
    for batch in run.stream(0):
        given = inputs(batch, batch.context[:, :-width], batch.context[:, -width:])
        take_step(model, (shifted(given) if "ttt_steps" in asked else given) | asked, optimizers)
        for schedule in schedules:
            schedule.step()
    return time.perf_counter() - started


def shifted(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What its `shift_batch` does to each document for EAGLE-3: features of x_t stand beside x_{t+1}."""
    first = given["position_ids"][0] == 0
    return {name: rows[:, ~(first.roll(-1) if name == "hidden_states" else first)] for name, rows in given.items()}
