"""A capture worker, then a trainer rank killed with SIGKILL in the middle of a run on Ray: it goes on, to the very same weights."""

from tests.faults.conftest import check_killed_one_after_another


def test_killed_processes_cost_time_and_change_no_number(config, undisturbed):
    victims = {10: "ray::CaptureWorker", 20: "ray::RayTrainWorker"}
    check_killed_one_after_another(config, undisturbed, "cluster", victims, "inference.num_workers=2")
