"""What a measured plan predicts, against counting by hand and against a real run."""

import pytest
import torch

from tests.tiny import recipe, write_chats, write_tiny_target
from torchspec.capture.base import OWN_DEVICE, SHARED_DEVICE
from torchspec.capture.engine import memory_fraction
from torchspec.config import load_config
from torchspec.launch import measure as measure_plan
from torchspec.launch.measure import Rates, alone, best_split, captured_tokens, predict
from torchspec.training.build import build
from torchspec.training.distributed import World
from torchspec.training.loop import train

RATES = Rates(capture=0.001, train=2.0, evaluate=0.5)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, target_folder):
    folder = tmp_path_factory.mktemp("plan")
    target = write_tiny_target(folder / "target", target_folder)
    train_file, held_out = write_chats(folder / "train.jsonl", 12), write_chats(folder / "heldout.jsonl", 3, first=100)
    return recipe(folder / "run.yaml", target, train_file, held_out, num_epochs=2)


def built(file, *overrides: str):
    config = load_config(str(file), list(overrides))
    return config, build(alone(config), World(0, 1, torch.device("cpu")))


def test_without_a_cache_every_epoch_is_captured_and_with_one_the_first(recipe_file):
    tokens = int(built(recipe_file)[1].dataset.lengths.sum())
    assert captured_tokens(built(recipe_file)[1]) == 2 * tokens
    assert captured_tokens(built(recipe_file, "inference.cache_gib=1")[1]) == tokens


def test_a_cache_of_one_sample_saves_that_sample(recipe_file):
    """Features of a token are 2 layers of 64 float32; an eighth of the cache belongs to the held-out text."""
    config, run = built(recipe_file)
    first = int(run.dataset.lengths[run.plan[0].indices[0]])
    cache = f"inference.cache_gib={first * 2 * 64 * 4 * 8 / 7 / 2**30 * 1.0001}"
    assert captured_tokens(built(recipe_file, cache)[1]) == 2 * int(run.dataset.lengths.sum()) - first


def test_prediction_is_a_sum_of_counts_times_rates(recipe_file):
    """Two epochs of six micro-batches of two; evaluations after steps 4, 8 and 12 on three samples."""
    config, run = built(recipe_file)
    predicted = predict(config, run, RATES)
    capture = 0.001 * 2 * int(run.dataset.lengths.sum())
    assert (predicted.capture, predicted.train, predicted.evaluate) == (pytest.approx(capture), 24.0, 4.5)
    assert predicted.run == pytest.approx(capture + 24.0 + 4.5)


def test_a_cpu_of_several_cores_captures_while_it_trains(recipe_file):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        config, run = built(recipe_file)
    finally:
        torch.set_num_threads(threads)
    predicted = predict(config, run, RATES)
    assert predicted.run == pytest.approx(max(predicted.capture, 24.0) + 4.5)


def test_ranks_and_workers_share_the_same_work(recipe_file):
    config, run = built(recipe_file, "training.num_ranks=2", "inference.num_workers=3")
    assert run.total_steps == 6
    predicted = predict(config, run, RATES)
    assert predicted.train == 24.0
    assert predicted.run == pytest.approx(max(predicted.capture / 3, 24.0 / 2) + predicted.evaluate / 2)


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "workers", "set_to", "share", "share_in_plan"),
    [
        (CUDA, 1, None, OWN_DEVICE, SHARED_DEVICE),
        (CUDA, 0, None, SHARED_DEVICE, SHARED_DEVICE),
        (CPU, 2, None, SHARED_DEVICE, SHARED_DEVICE),
        (CUDA, 0, 0.3, 0.3, 0.3),
        (CUDA, 1, 0.85, 0.85, SHARED_DEVICE),
    ],
)
def test_an_engine_leaves_room_for_the_trainer_beside_it(recipe_file, device, workers, set_to, share, share_in_plan):
    """`plan` captures in the trainer's process: what a run's engine may take of its own device says nothing there."""
    overrides = ["inference.inference_engine_type=vllm", f"inference.num_workers={workers}"]
    config = load_config(str(recipe_file), [*overrides, *([f"inference.memory_fraction={set_to}"] if set_to else [])])
    assert (memory_fraction(config, device), memory_fraction(alone(config), device)) == (share, share_in_plan)


def test_what_is_rounded_on_the_way_to_ranks_is_not_rounded_in_the_plan_unless_it_is_kept_so(recipe_file, tmp_path):
    rounding = ["inference.num_workers=1", "inference.transfer_dtype=fp8"]
    assert alone(load_config(str(recipe_file), rounding)).inference.transfer_dtype == "model"
    assert alone(load_config(str(recipe_file), [*rounding, f"inference.replay_dir={tmp_path}"])).inference.transfer_dtype == "fp8"


def test_best_split_is_the_best_of_all():
    assert best_split(10.0, 30.0, 4) == (1, 10.0)
    assert best_split(30.0, 10.0, 8) == (6, 5.0)


def test_the_command_measures_and_a_real_run_takes_about_as_long(recipe_file, monkeypatch, capsys):
    """Tolerance: a factor of five, since both last a second on a machine that others use; RESULTS.md has the real comparison."""
    for name in ("CAPTURE_SECONDS", "TRAIN_SECONDS", "EVALUATE_SECONDS"):
        monkeypatch.setattr(measure_plan, name, 0.5)
    config = load_config(str(recipe_file), [])
    predicted = measure_plan.measure_plan(config, price=2.0)
    printed = capsys.readouterr().out
    assert all(f"{row:>9}  " in printed for row in ("measured", "predicted", "epoch", "split", "cost"))
    assert 1 / 5 < train(config).seconds / predicted.run < 5
