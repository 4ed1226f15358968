"""A capture worker, then a trainer rank killed with SIGKILL in the middle of a run on Ray: it goes on, to the very same weights.
And one that is asked to end."""

import signal

import torch

from tests.faults.conftest import check_killed_one_after_another, finished, start, wait_for_step
from torchspec.training import checkpoints
from torchspec.training.tensors import read_weights


def test_the_driver_is_asked_to_end_and_every_rank_saves_the_same_step(config, undisturbed):
    """By Ctrl-C, which Ray would answer by ending the ranks where they are. The same command goes on from there."""
    out = config.parent / "asked"
    run = start(config, out)
    wait_for_step(10, run, out)
    run.send_signal(signal.SIGINT)
    output = finished(run, out)
    assert run.returncode == 128 + signal.SIGINT and "torchspec train was stopped: the same command goes on from" in output, output
    assert checkpoints.latest(out / "checkpoints").is_dir()
    again = start(config, out)
    assert "resuming from" in finished(again, out) and again.returncode == 0
    ours, theirs = (read_weights(checkpoints.latest(o / "checkpoints")) for o in (out, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_killed_processes_cost_time_and_change_no_number(config, undisturbed):
    victims = {10: "ray::CaptureWorker", 20: "ray::RayTrainWorker"}
    check_killed_one_after_another(config, undisturbed, "cluster", victims, "inference.num_workers=2")
