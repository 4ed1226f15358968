"""Capture workers and trainer ranks killed with SIGKILL in the middle of a run on Ray: it goes on by itself, to the very same weights."""

import pytest

from tests.faults.conftest import DEADLINE, assert_same_outcome, kill_one, start, wait_for_step_10


@pytest.mark.parametrize("victim", ["ray::CaptureWorker", "ray::RayTrainWorker"])
def test_a_killed_process_costs_time_and_changes_no_number(config, undisturbed, victim):
    out = config.parent / victim.removeprefix("ray::")
    run = start(config, out, "inference.num_workers=2")
    wait_for_step_10(run, out)
    kill_one(run, victim)
    output, _ = run.communicate(timeout=DEADLINE)
    assert run.returncode == 0, output
    assert_same_outcome(out, undisturbed)
