"""What a fixed budget of training buys: python benchmarks/learning.py DATA [--setting NAME ...] [--steps N | --minutes M] [--seed S]

DATA: conversations whose answers the target wrote. The last 48 are held out; each setting trains on the others, from the same seed, and is
scored by its tau on the 48. Features stay on disk beside the runs, so that a setting pays for its capture once and its minutes hold none.
Appends one JSON line per setting to FILE. LEADERBOARD.md says what to do with them.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from torchspec.capture.base import open_capture
from torchspec.capture.engine import capture_spec
from torchspec.capture.replay import ReplayCapture
from torchspec.config import RunConfig, load_config
from torchspec.decode.offline import right_drafts
from torchspec.decode.pair import load_pair
from torchspec.export.hf import export_checkpoint
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.target.fetch import resolve_target
from torchspec.target.frozen import FrozenTarget
from torchspec.training.build import build_method, open_datasets
from torchspec.training.checkpoint import TrainState
from torchspec.training.checkpoints import best
from torchspec.training.loop import train

BASE = Path(__file__).parent / "smollm2_gsm8k.yaml"
WORK = Path("outputs/learning")
HELD_OUT = 48
TRIAL_STEPS = 20  # that tell how many steps fit into a number of minutes
SETTINGS = {  # overrides of the base recipe
    "recipe": [],
    "decay-7": ["draft.loss_decay_gamma=7.0"],
    "decay-7-layers-1-14-28": ["draft.loss_decay_gamma=7.0", "draft.target_layer_ids=[1,14,28]"],
    "decay-7-linear-to-0": [
        "draft.loss_decay_gamma=7.0",
        "training.min_lr=0.0",
        "training.lr_decay_style=WSD",
        "training.wsd_decay_ratio=0.98",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="may be given several times; default: all")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=280)
    budget.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WORK / "results.jsonl")
    options = parser.parse_args()
    split(options.data)
    for name in options.setting or SETTINGS:
        row = measure(name, options.steps, options.minutes, options.seed)
        with options.out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(json.dumps(row))


def split(data: Path) -> None:
    """The conversations to train on, and those held out."""
    lines = data.read_text().splitlines(keepends=True)
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "train.jsonl").write_text("".join(lines[:-HELD_OUT]))
    (WORK / "heldout.jsonl").write_text("".join(lines[-HELD_OUT:]))


def measure(name: str, steps: int, minutes: float | None, seed: int) -> dict:
    features = keep_features(run_config(name, steps, seed))
    if minutes is not None:
        trial = run(name, TRIAL_STEPS, seed, features)
        steps = int(60 * minutes * TRIAL_STEPS / trial.seconds)
    state = run(name, steps, seed, features)
    return {
        "setting": name, "overrides": SETTINGS[name], "seed": seed, "steps": steps, "tau": state.best_tau,
        "every_anchor": every_anchor(run_config(name, steps, seed), features), "tokens": state.tokens, "minutes": state.seconds / 60,
    }  # fmt: skip


def every_anchor(config: RunConfig, features: Path) -> float:
    """1 + right drafts, averaged over every token of the held-out answers, not only those that decoding visits."""
    draft = export_checkpoint(best(config.checkpoints), Path(config.output_dir) / "draft")
    pair = load_pair(draft, config.model.target_model_path, config.model.dtype, config.model.device, trust_remote_code=False)
    spec = capture_spec(config, pair.folder, pair.method.layer_ids, pair.target.device)
    capture, held_out = ReplayCapture(pair.target, spec, features, sys.maxsize, fp8=False), open_datasets(config, pair.folder)[1]
    rights = [right for i in range(len(held_out)) for right in right_drafts(pair.method, pair.model, capture.capture(held_out[i]))]
    return 1 + float(torch.cat(rights).float().mean())


def keep_features(config: RunConfig) -> Path:
    """The folder that holds the features of all conversations, of the layers that the setting asks for."""
    folder, device = resolve_target(config.model.target_model_path), resolve_device(config.model.device)
    datasets = open_datasets(config, folder)
    method = build_method(config, FrozenTarget.load(folder, resolve_dtype(config.model.dtype), device), datasets[0])
    features = WORK / f"features-{'-'.join(map(str, method.layer_ids))}"
    spec = capture_spec(config, folder, method.layer_ids, device)
    engine = open_capture(config.inference.inference_engine_type, spec)
    capture = ReplayCapture(engine, spec, features, sys.maxsize, fp8=False)
    for dataset in datasets:
        for i in range(len(dataset)):
            capture.capture(dataset[i])
    return features


def run(name: str, steps: int, seed: int, features: Path) -> TrainState:
    """From zero, evaluated once at the end."""
    config = run_config(name, steps, seed, f"inference.replay_dir={features}")
    shutil.rmtree(config.output_dir, ignore_errors=True)
    return train(config)


def run_config(name: str, steps: int, seed: int, *more: str) -> RunConfig:
    overrides = [
        f"output_dir={WORK / f'{name}-{seed}-{steps}'}",
        f"dataset.train_data_path={WORK / 'train.jsonl'}", f"dataset.eval_data_path={WORK / 'heldout.jsonl'}",
        f"training.seed={seed}", f"training.max_steps={steps}", f"training.save_interval={steps}",
        f"evaluation.interval={steps}", f"evaluation.max_samples={HELD_OUT}", *more,
    ]  # fmt: skip
    return load_config(str(BASE), SETTINGS[name] + overrides)


if __name__ == "__main__":
    main()
