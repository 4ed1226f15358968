"""What a fixed budget of training buys: python benchmarks/learning.py DATA [--setting NAME ...] [--steps N | --minutes M] [--seed S]

DATA: conversations whose answers the target wrote. The last 48 are held out; each setting trains on the others, from the same seed, and is
scored by its tau on the 48. Features stay on disk beside the runs, so that a setting pays for its capture once and its minutes hold none.
Appends one JSON line per setting to FILE. LEADERBOARD.md says what to do with them.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from torchspec.capture.base import open_capture
from torchspec.capture.engine import capture_spec
from torchspec.capture.replay import ReplayCapture
from torchspec.config import RunConfig, load_config
from torchspec.decode.offline import right_drafts
from torchspec.decode.pair import Pair, load_pair
from torchspec.export.hf import export_checkpoint
from torchspec.methods.base import Method
from torchspec.nn.device import resolve_device, resolve_dtype
from torchspec.records import Features
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
        setting = Setting(name, SETTINGS[name])
        steps = options.steps if options.minutes is None else setting.steps_in(options.minutes, options.seed)
        keep(setting.measure(steps, options.seed), options.out)


def keep(row: dict, file: Path) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    print(json.dumps(row))


def split(data: Path) -> None:
    """The conversations to train on, and those held out."""
    lines = data.read_text().splitlines(keepends=True)
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "train.jsonl").write_text("".join(lines[:-HELD_OUT]))
    (WORK / "heldout.jsonl").write_text("".join(lines[-HELD_OUT:]))


@dataclass(frozen=True)
class Setting:
    """A recipe that is the base but for some overrides, trained from zero and scored on the held-out conversations."""

    name: str
    overrides: list[str]
    base: Path = BASE

    def config(self, steps: int, seed: int, *more: str) -> RunConfig:
        overrides = [
            f"output_dir={WORK / f'{self.name}-{seed}-{steps}'}",
            f"dataset.train_data_path={WORK / 'train.jsonl'}", f"dataset.eval_data_path={WORK / 'heldout.jsonl'}",
            f"training.seed={seed}", f"training.max_steps={steps}", f"training.save_interval={steps}",
            f"evaluation.interval={steps}", f"evaluation.max_samples={HELD_OUT}", *more,
        ]  # fmt: skip
        return load_config(str(self.base), self.overrides + overrides)

    def steps_in(self, minutes: float, seed: int) -> int:
        trial = self.train(TRIAL_STEPS, seed)
        return int(60 * minutes * TRIAL_STEPS / trial.seconds)

    def train(self, steps: int, seed: int, *more: str) -> TrainState:
        """From zero, evaluated once at the end. more: overrides."""
        config = self.config(steps, seed, *more, f"inference.replay_dir={self.features(seed)}")
        shutil.rmtree(config.output_dir, ignore_errors=True)
        return train(config)

    def measure(self, steps: int, seed: int) -> dict:
        state, pair = self.train(steps, seed), self.pair(steps, seed)
        return {
            "setting": self.name, "overrides": self.overrides, "seed": seed, "steps": steps, "tau": state.best_tau,
            "every_anchor": every_anchor(pair, self.held_out(pair, steps, seed)), "tokens": state.tokens, "minutes": state.seconds / 60,
        }  # fmt: skip

    def pair(self, steps: int, seed: int) -> Pair:
        """The trained draft, exported and loaded beside its target."""
        config = self.config(steps, seed)
        draft = export_checkpoint(best(config.checkpoints), Path(config.output_dir) / "draft")
        return load_pair(draft, config.model.target_model_path, config.model.dtype, config.model.device, trust_remote_code=False)

    def held_out(self, pair: Pair, steps: int, seed: int) -> list[Features]:
        """Of the held-out conversations, from disk."""
        config = self.config(steps, seed)
        kept, dataset = on_disk(config, pair.method), open_datasets(config, pair.folder)[1]
        return [kept.capture(dataset[i]) for i in range(len(dataset))]

    def features(self, seed: int) -> Path:
        """The folder that holds the features of all conversations, of the layers that the setting asks for: captured once."""
        config = self.config(TRIAL_STEPS, seed)
        folder = resolve_target(config.model.target_model_path)
        datasets = open_datasets(config, folder)
        device = resolve_device(config.model.device)
        method = build_method(config, FrozenTarget.load(folder, resolve_dtype(config.model.dtype), device), datasets[0])
        kept = on_disk(config, method)
        for dataset in datasets:
            for i in range(len(dataset)):
                kept.capture(dataset[i])
        return folder_of(method)


def every_anchor(pair: Pair, held_out: list[Features]) -> float:
    """1 + right drafts, averaged over every token of the answers, not only those that decoding visits."""
    rights = [right for features in held_out for right in right_drafts(pair.method, pair.model, features)]
    return 1 + float(torch.cat(rights).float().mean())


def folder_of(method: Method) -> Path:
    return WORK / f"features-{'-'.join(map(str, method.layer_ids))}"


def on_disk(config: RunConfig, method: Method) -> ReplayCapture:
    """Captures what is not on disk yet, and reads the rest."""
    spec = capture_spec(config, method.target.folder, method.layer_ids, resolve_device(config.model.device))
    return ReplayCapture(open_capture(config.inference.inference_engine_type, spec), spec, folder_of(method), sys.maxsize, fp8=False)


if __name__ == "__main__":
    main()
