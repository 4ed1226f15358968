"""Samples that no worker can capture: tried, written down, replaced by an empty document, and too many of them end the run."""

import json
from pathlib import Path

import pytest
import ray
import torch

from tests.tiny import recipe, write_chats, write_tiny_target
from torchspec.capture.base import CaptureSpec
from torchspec.capture.hf import HFCapture
from torchspec.config import load_config
from torchspec.errors import UserError
from torchspec.launch.ray import capture_workers
from torchspec.launch.remote import RemoteCapture
from torchspec.records import Prompt
from torchspec.training.stream import pack

LAYERS, WIDTH = (1, 3), 2 * 64


@pytest.fixture(scope="module")
def target(tmp_path_factory, target_folder) -> Path:
    return write_tiny_target(tmp_path_factory.mktemp("drop") / "target", target_folder)


@pytest.fixture(scope="module")
def capture(target) -> RemoteCapture:
    folder = target.parent
    file = recipe(folder / "run.yaml", target, write_chats(folder / "train.jsonl", 4), write_chats(folder / "heldout.jsonl", 2, first=50))
    config = load_config(str(file), ["inference.num_workers=2", "inference.max_dropped=0.02", f"output_dir={folder}"])
    yield RemoteCapture(capture_workers(config, target, LAYERS, None), config, LAYERS, WIDTH, 100, torch.device("cpu"))
    ray.shutdown()


def prompt(index: int, last_token: int = 7) -> Prompt:
    ids = torch.cat((torch.arange(100, 120) + index, torch.tensor([last_token])))
    return Prompt(index, ids, torch.arange(21) > 5)


def test_workers_yield_what_a_capture_in_process_yields_bitwise(capture, target):
    oracle = HFCapture(CaptureSpec(target, LAYERS, torch.float32))
    pending = [capture.request([prompt(i)]) for i in range(8)]
    for i, request in enumerate(pending):
        assert torch.equal(request.result()[0].context, oracle.capture(prompt(i)).context)
    assert capture.pool.under_way == [0, 0]


def test_the_worker_with_the_shortest_queue_gets_the_next_request(capture):
    pool = capture.pool
    requests = [pool.send([prompt(i)]) for i in range(8)]  # not yet received, so all count, whatever the workers have done
    assert pool.under_way == [4, 4]
    for request in [request for request in requests if request[0] == 0]:
        pool.receive(request)
    assert pool.under_way == [0, 4]
    assert [pool.send([prompt(i)])[0] for i in range(4)] == [0, 0, 0, 0]


def test_a_sample_that_always_fails_is_dropped_and_too_many_end_the_run(capture):
    for index in (3, 5):
        features = capture.capture(prompt(index, last_token=10**6))  # no such token: every worker refuses it
        batch = pack([features, capture.capture(prompt(0))], epoch=0)
        assert features.prompt.loss_mask.sum() == 0 and batch.lengths == (2, 21)
    rows = [json.loads(line) for line in capture.file.read_text().splitlines()]
    assert [row["sample"] for row in rows] == [3, 5] and all(len(row["reasons"]) == capture.max_tries == 3 for row in rows)
    with pytest.raises(UserError, match="3 samples could not be captured, more than inference.max_dropped allows"):
        capture.capture(prompt(6, last_token=10**6))
