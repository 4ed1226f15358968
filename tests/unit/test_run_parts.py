"""Plan, stream, schedule, checkpoints, frozen target: conservation laws, bitwise equality, end points."""

import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tiny import write_tiny_target
from torchspec import checkpoint
from torchspec.capture.base import CaptureSpec
from torchspec.capture.cache import CachedCapture
from torchspec.capture.hf import HFCapture
from torchspec.config import RunConfig, TrainingConfig
from torchspec.data.plan import plan_micro_batches, rank_plan
from torchspec.errors import UserError
from torchspec.optim import build_optimizers, learning_rate
from torchspec.records import Features, Prompt
from torchspec.stream import FeatureStream
from torchspec.target import FrozenTarget

LENGTHS = np.random.default_rng(0).integers(5, 60, size=53)


def test_a_plan_holds_every_sample_once_per_epoch_within_its_limits():
    plan = plan_micro_batches(LENGTHS, seed=1, num_epochs=3, samples=4, max_tokens=120)
    for epoch in range(3):
        indices = [i for batch in plan if batch.epoch == epoch for i in batch.indices]
        assert sorted(indices) == list(range(len(LENGTHS)))
    assert all(len(b.indices) <= 4 and LENGTHS[list(b.indices)].sum() <= 120 for b in plan)
    assert plan == plan_micro_batches(LENGTHS, seed=1, num_epochs=3, samples=4, max_tokens=120)
    assert plan != plan_micro_batches(LENGTHS, seed=2, num_epochs=3, samples=4, max_tokens=120)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 2)])
def test_ranks_share_each_step_of_the_plan_and_take_equally_many(world_size, accumulation):
    plan = plan_micro_batches(LENGTHS, 0, 2, 3, 200)
    ranks = [rank_plan(plan, rank, world_size, accumulation, None) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1 and len(ranks[0]) % accumulation == 0
    woven = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert woven == plan[: len(woven)] and len(plan) - len(woven) < world_size * accumulation


def test_a_plan_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="max_batch_tokens"):
        plan_micro_batches(LENGTHS, 0, 1, 4, 30)
    with pytest.raises(UserError, match="do not fill one step"):
        rank_plan(plan_micro_batches(LENGTHS, 0, 1, 53, 10**6), 0, 2, 1, None)


class CountingCapture:
    """Features that tell which sample and token they belong to."""

    layer_ids, producer = (0,), "test"

    def __init__(self):
        self.calls = 0

    def capture(self, prompt: Prompt) -> Features:
        self.calls += 1
        return Features(prompt, torch.stack((torch.full_like(prompt.ids, prompt.index), prompt.ids), dim=1).float() + 1, (0,), "test")


class Prompts:
    def __getitem__(self, i: int) -> Prompt:
        ids = torch.arange(int(LENGTHS[i])) + 1000 * i
        return Prompt(i, ids, ids % 2 == 0)


@pytest.mark.parametrize("position", [0, 1, 17])
@pytest.mark.parametrize("depth", [1, 5, 100])
def test_a_stream_from_position_p_is_the_tail_of_the_whole_stream(position, depth):
    plan = plan_micro_batches(LENGTHS, 0, 2, 3, 200)
    whole = list(FeatureStream(Prompts(), CountingCapture(), plan, 0, 1))
    tail = list(FeatureStream(Prompts(), CountingCapture(), plan, position, depth))
    assert len(whole) == len(plan)
    for a, b in zip(whole[position:], tail, strict=True):
        assert a.indices == b.indices and a.lengths == b.lengths and a.epoch == b.epoch
        assert torch.equal(a.context, b.context) and torch.equal(a.ids, b.ids) and torch.equal(a.loss_mask, b.loss_mask)
        assert torch.equal(a.context[:, 1] - 1, a.ids.float())  # features and tokens stay beside each other


def test_the_stream_asks_for_no_more_than_its_depth_ahead():
    plan = plan_micro_batches(LENGTHS, 0, 1, 1, 200)
    for depth in (1, 4):
        capture = CountingCapture()
        stream = iter(FeatureStream(Prompts(), capture, plan, 0, depth))
        for taken in range(1, 6):
            next(stream)
            assert capture.calls == taken + depth


def test_the_cache_returns_what_was_captured_and_keeps_to_its_limit():
    inner = CountingCapture()
    one = inner.capture(Prompts()[0]).context.nbytes
    cache = CachedCapture(inner, one)
    first, again = cache.capture(Prompts()[0]), cache.capture(Prompts()[0])
    assert torch.equal(first.context, again.context) and inner.calls == 2
    cache.capture(Prompts()[1])
    cache.capture(Prompts()[1])
    assert inner.calls == 4 and cache.bytes <= one


def test_learning_rates_at_the_ends_of_every_phase():
    options = {"learning_rate": 1.0, "min_lr": 0.1, "warmup_ratio": 0.1}
    cosine = TrainingConfig(**options, lr_decay_style="cosine")
    wsd = TrainingConfig(**options, lr_decay_style="WSD", wsd_decay_ratio=0.2)
    for training in (cosine, wsd, TrainingConfig(**options, lr_decay_style="constant")):
        assert [learning_rate(s, 100, training) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(10, 100, cosine) == 1.0 and learning_rate(55, 100, cosine) == pytest.approx(0.55)
    assert 0.1 < learning_rate(99, 100, cosine) < 0.101
    assert learning_rate(79, 100, wsd) == learning_rate(80, 100, wsd) == 1.0 and learning_rate(90, 100, wsd) == pytest.approx(0.55)


@dataclass
class Setup:
    model: nn.Module
    optimizers: list
    config: RunConfig


def setup(optimizer: str, steps: int, **training) -> Setup:
    torch.manual_seed(0)
    values = {"output_dir": "o", "model": {"target_model_path": "t"}, "dataset": {"train_data_path": "d"}}
    config = RunConfig(**values, training={"optimizer": optimizer, "weight_decay": 0.1, **training})
    model = nn.Sequential(nn.Linear(6, 5), nn.RMSNorm(5), nn.Linear(5, 3, bias=False))
    optimizers = build_optimizers(model, config.training)
    for _ in range(steps):
        _step(model, optimizers)
    return Setup(model, optimizers, config)


def _step(model, optimizers) -> None:
    model(torch.arange(12.0).view(2, 6)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def save(root, s: Setup, step: int, **state) -> None:
    from transformers import Qwen3Config

    checkpoint.save(root, checkpoint.TrainState(step=step, **state), s.model, s.optimizers, s.config, Qwen3Config(), {})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loaded_checkpoint_continues_bitwise(tmp_path, optimizer):
    kept = setup(optimizer, 3)
    save(tmp_path, kept, 3, best_tau=1.5, best_step=2)
    resumed = setup(optimizer, 0)
    state = checkpoint.load(checkpoint.latest(tmp_path), resumed.model, resumed.optimizers, resumed.config)
    assert state == checkpoint.TrainState(step=3, best_tau=1.5, best_step=2)
    for s in (kept, resumed):
        _step(s.model, s.optimizers)
    for a, b in zip(kept.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rotation_keeps_the_newest_and_the_best_and_a_failed_delete_warns(tmp_path, monkeypatch):
    s = setup("adamw", 1)
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, s, step)
    checkpoint.rotate(tmp_path, 2, best_step=2)
    assert [p.name for p in sorted(tmp_path.glob("iter_*"))] == ["iter_0000002", "iter_0000004", "iter_0000005"]

    def refuse(path, *_):
        raise OSError("busy")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(UserWarning, match="iter_0000004 could not be deleted .busy."):
        checkpoint.rotate(tmp_path, 1, best_step=2)


def test_half_a_checkpoint_is_no_checkpoint(tmp_path):
    s = setup("adamw", 1)
    save(tmp_path, s, 1)
    (tmp_path / ".partial_2").mkdir()
    (tmp_path / ".partial_2" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == tmp_path / "iter_0000001"
    save(tmp_path, s, 2)
    assert checkpoint.latest(tmp_path) == tmp_path / "iter_0000002" and not (tmp_path / ".partial_2").exists()


def test_another_run_does_not_resume_from_it(tmp_path):
    save(tmp_path, setup("adamw", 1), 1)
    other = setup("adamw", 0, seed=7)
    with pytest.raises(UserError, match="training.seed: 0 -> 7"):
        checkpoint.load(checkpoint.latest(tmp_path), other.model, other.optimizers, other.config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, target_folder):
    return write_tiny_target(tmp_path_factory.mktemp("frozen") / "target", target_folder)


def test_frozen_parts_reproduce_the_models_logits_tied_untied_and_sharded(folder, tmp_path):
    import json

    ids = torch.arange(20)
    for kind in ("tied", "untied", "sharded"):
        copy = tmp_path / kind
        shutil.copytree(folder, copy)
        weights, config = load_file(copy / "model.safetensors"), json.loads((copy / "config.json").read_text())
        if kind != "tied":
            weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
            (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
        if kind == "sharded":
            names = sorted(weights)
            shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
            for file, part in shards.items():
                save_file({n: weights[n] for n in part}, copy / file, metadata={"format": "pt"})
            (copy / "model.safetensors").unlink()
            index = {"metadata": {}, "weight_map": {n: file for file, part in shards.items() for n in part}}
            (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        else:
            save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        target, engine = FrozenTarget.load(copy, torch.float32), HFCapture(CaptureSpec(copy, (5,), torch.float32))
        expected, last = engine.step(ids, engine.new_cache())
        torch.testing.assert_close(target.logits(last), expected, rtol=1e-4, atol=1e-4)
        assert (target.head is target.embedding) == (kind == "tied")
