"""A capture worker with two requests in hand: one thread has the engine, and the engine does not wait for the network."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.unit.tiny import HIDDEN, LAYERS
from torchspec.capture import registry
from torchspec.capture.base import CaptureSpec
from torchspec.config import RunConfig
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import decode

remote = pytest.importorskip("torchspec.launch.workers", reason="Ray is missing", exc_type=ImportError)


class Engine:
    """Stands for an engine that breaks when two threads call it. Its states follow from the prompt."""

    def __init__(self, spec: CaptureSpec):
        self.layer_ids, self.producer = spec.layer_ids, "engine"
        self.inside, self.calls, self.most_inside = 0, 0, 0
        self.called_again = threading.Event()

    def capture_batch(self, prompts: list[Prompt]) -> list[Features]:
        self.inside, self.calls = self.inside + 1, self.calls + 1
        self.most_inside = max(self.most_inside, self.inside)
        if self.calls > 1:
            self.called_again.set()
        time.sleep(0.002)
        self.inside -= 1
        return [Features(p, self.states(p), self.layer_ids, self.producer) for p in prompts]

    def states(self, prompt: Prompt) -> torch.Tensor:
        return torch.randn(len(prompt.ids), HIDDEN * len(LAYERS), generator=torch.Generator().manual_seed(prompt.index))

    def verify(self, prompts: list[Prompt]) -> None:
        self.capture_batch(prompts)


@pytest.fixture
def worker(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.BACKENDS, "engine", f"{__name__}:Engine")
    config = RunConfig(
        output_dir=str(tmp_path), model={"target_model_path": str(tiny_folder), "dtype": "float32", "device": "cpu"},
        dataset={"train_data_path": "none"}, inference={"num_workers": 1, "inference_engine_type": "engine"},
    )  # fmt: skip
    return remote.CaptureWorker(config.model_dump_json(), str(tmp_path), str(tiny_folder), LAYERS)


def prompts(first: int, count: int = 2) -> list[Prompt]:
    return [Prompt(i, torch.arange(5 + i), torch.arange(5 + i) > 1) for i in range(first, first + count)]


def test_one_thread_at_a_time_calls_the_engine_and_each_request_gets_its_own_features(worker):
    requests = [prompts(2 * i) for i in range(40)]
    with ThreadPoolExecutor(remote.REQUESTS) as threads:
        answers = list(threads.map(worker.capture, requests))
        list(threads.map(worker.verify, requests[:4]))
    assert worker.backend.most_inside == 1 and worker.backend.calls == 44
    for asked, wires in zip(requests, answers, strict=True):
        for prompt, wire in zip(asked, wires, strict=True):
            features = decode(wire, prompt, torch.device("cpu"), torch.float32)
            assert torch.equal(features.context, worker.backend.states(prompt))


def test_the_engine_runs_while_the_former_answer_is_sent(worker):
    class Network:
        """Takes nothing until the engine has been called again."""

        def put(self, wire):
            assert worker.backend.called_again.wait(10), "the engine waits for the network"
            return wire

    worker.transfer = Network()
    with ThreadPoolExecutor(remote.REQUESTS) as threads:
        assert [len(answer) for answer in threads.map(worker.capture, [prompts(0), prompts(2)])] == [2, 2]
