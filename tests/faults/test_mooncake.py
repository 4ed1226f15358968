"""Features over Mooncake while its master or a worker is killed: the run goes on to the very same weights, or stops with a sentence."""

import subprocess
import time

import pytest

from tests.faults.conftest import check_killed_one_after_another, finished, start, wait_for_step
from torchspec.transfer.mooncake_master import free_port, master_program

LONGEST_HANG = 120.0  # Mooncake gives up after half of that; other processes test beside this one
OVER_MOONCAKE = ("inference.num_workers=2", "inference.transfer=mooncake", "inference.mooncake.segment_gib=0.25")


@pytest.fixture(scope="module", autouse=True)
def mooncake():
    pytest.importorskip("mooncake.store", reason="libibverbs1, librdmacm1 or libnuma1 is missing", exc_type=ImportError)


def test_a_killed_master_and_a_killed_worker_cost_time_and_change_no_number(config, undisturbed):
    victims = {10: "mooncake_master", 20: "ray::CaptureWorker"}
    check_killed_one_after_another(config, undisturbed, "mooncake", victims, *OVER_MOONCAKE)


def test_a_master_that_stays_away_ends_the_run_with_a_sentence(config):
    port, out = free_port("127.0.0.1"), config.parent / "mooncake-gone"
    master = subprocess.Popen(
        [master_program(), f"--rpc_port={port}", f"--metrics_port={free_port('127.0.0.1')}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = start(config, out, *OVER_MOONCAKE, f"inference.mooncake.master=127.0.0.1:{port}")
    try:
        wait_for_step(10, run, out)
    finally:
        master.kill()
    killed = time.monotonic()
    output = finished(run, out)
    waited = time.monotonic() - killed
    print(f"\nthe run stopped {waited:.0f} s after its Mooncake master was killed")
    assert run.returncode == 2 and "is the master at 127.0.0.1" in output
    assert waited < LONGEST_HANG
