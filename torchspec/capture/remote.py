"""Capture on other devices: the worker that runs there, and the source that a trainer rank asks.

A worker that dies is started again by Ray; its requests go to the others meanwhile. A sample that fails `max_tries` times is
dropped: it counts, it is listed in dropped.jsonl, and an empty document stands in for it so that all ranks keep step.
"""

import json
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import ray
import torch
import transformers
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from torchspec.build import capture_spec, open_engine
from torchspec.config import RunConfig
from torchspec.errors import ContractError, EngineMismatch, FeaturesLost, TransferDown, UserError
from torchspec.inference import resolve_device, resolve_dtype
from torchspec.records import Features, Prompt
from torchspec.transfer.base import open_transfer
from torchspec.transfer.codec import Wire, decode, encode
from torchspec.transfer.staging import CopyStream, copy_stream

PATIENCE = 60.0  # seconds without any living worker after which the run stops
REQUESTS = 2  # that a worker has in hand: its engine runs one while the answer to the other is sent


class CaptureWorker:
    """One target on its own device or devices. A Ray actor of REQUESTS threads; further requests wait in its queue."""

    def __init__(self, config: str, working_folder: str, target: str, layer_ids: tuple[int, ...]):
        os.chdir(working_folder)
        transformers.utils.logging.disable_progress_bar()  # its lines would land among those of the run
        self.config = RunConfig.model_validate_json(config)
        self.spec = capture_spec(self.config, Path(target), layer_ids, resolve_device(self.config.model.device))
        self.backend = open_engine(self.config, self.spec)
        self.transfer = open_transfer(self.config, sends=True)
        self.engine = threading.Lock()  # engines and their devices serve one thread at a time

    def verify(self, prompts: list[Prompt]) -> None:
        with self.engine:
            self.backend.verify(prompts)

    def producer(self) -> str:
        return self.backend.producer

    def capture(self, prompts: list[Prompt]) -> list:
        """What the trainer's end of the transfer gets each prompt's features with. Putting, and Ray's copying, leave the engine free."""
        with self.engine:
            wires = [encode(features, self.spec.fp8) for features in self.backend.capture_batch(prompts)]
        return [self.transfer.put(wire) for wire in wires]


class WorkerPool:
    """Hands each request to the living worker with the fewest requests of this rank under way. Two threads use it."""

    def __init__(self, workers: list):
        self.workers, self.lock = workers, threading.Lock()
        self.under_way = [0] * len(workers)
        self.resting: dict[int, ray.ObjectRef] = {}  # dead workers, and the question that they will answer once restarted
        self.given_up = False

    def send(self, prompts: list[Prompt]) -> tuple[int, ray.ObjectRef]:
        with self.lock:
            living = self._living() or self._wait_for_one()
            chosen = min(living, key=self.under_way.__getitem__)
            self.under_way[chosen] += 1
            return chosen, self.workers[chosen].capture.remote(prompts)

    def done(self, worker: int) -> None:
        with self.lock:
            self.under_way[worker] -= 1

    def rest(self, worker: int) -> None:
        """It died: nothing is sent until it has been restarted."""
        with self.lock:
            if worker not in self.resting:
                self.resting[worker] = self.workers[worker].producer.remote()

    def producer(self) -> str:
        """What the workers capture with; the first call waits until they have loaded their targets."""
        return self._answer(0, self.workers[0].producer.remote(), timeout=None)

    def _living(self) -> list[int]:
        for worker, question in list(self.resting.items()):
            if self._answer(worker, question, timeout=0):
                del self.resting[worker]
        return [worker for worker in range(len(self.workers)) if worker not in self.resting]

    def _answer(self, worker: int, question: ray.ObjectRef, timeout: float | None) -> str | None:
        """A worker that cannot even start says why, and that ends the run."""
        try:
            return ray.get(question, timeout=timeout)
        except GetTimeoutError:  # still starting
            return None
        except ActorDiedError as error:
            if error.actor_init_failed:
                raise UserError(f"a capture worker cannot start: {_last_line(error)}") from error
        except RayActorError:  # being restarted: ask again
            pass
        self.resting[worker] = self.workers[worker].producer.remote()
        return None

    def _wait_for_one(self) -> list[int]:
        until = time.monotonic() + (0 if self.given_up else PATIENCE)
        while time.monotonic() < until:
            if living := self._living():
                return living
            time.sleep(0.2)
        self.given_up = True
        raise UserError(f"no capture worker has answered for {PATIENCE:.0f} seconds; see the workers' logs of Ray")


class Arriving:
    """Features of a request, which another thread receives and copies to the device."""

    def __init__(self, received: Future, stream: CopyStream):
        self.received, self.stream = received, stream

    def result(self) -> list[Features]:
        """Waits until they are received; for the copy only the device waits."""
        features, there = self.received.result()
        self.stream.hand_over([f.context for f in features], there)
        return features


class RemoteCapture:
    """A rank's source of features, and its capture for evaluation. width: K*H_t of the context; samples: in this rank's plan.

    One thread sends requests, another receives and decodes in their order: the trainer finds its features ready.
    """

    def __init__(self, pool: WorkerPool, config: RunConfig, layer_ids: tuple[int, ...], width: int, samples: int, device: torch.device):
        self.pool, self.layer_ids, self.width, self.device = pool, layer_ids, width, device
        self.dtype, self.max_tries = resolve_dtype(config.model.dtype), config.inference.max_tries
        self.dropped, self.most_dropped = 0, int(config.inference.max_dropped * samples)
        self.file = Path(config.output_dir) / "dropped.jsonl"
        self.transfer = open_transfer(config, sends=False)
        self.sender, self.receiver = (ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) for name in ("requests", "features"))
        self.producer = pool.producer()

    def request(self, prompts: list[Prompt]) -> Arriving:
        """The features of one micro-batch, from one worker."""
        stream, sent = copy_stream(self.device), self.sender.submit(self.pool.send, prompts)
        return Arriving(self.receiver.submit(stream.run, self._resolve, prompts, sent), stream)

    def capture(self, prompt: Prompt) -> Features:
        return self.request([prompt]).result()[0]

    def _resolve(self, prompts: list[Prompt], sent: Future) -> list[Features]:
        """Waits for the answer; asks again where a worker failed, and for each prompt alone where one of several is to blame."""
        (worker, reference), reasons = sent.result(), []
        while True:
            try:
                wires = self._receive(worker, reference)
                return [decode(wire, prompt, self.device, self.dtype) for wire, prompt in zip(wires, prompts, strict=True)]
            except RayActorError as error:
                reasons.append(f"the capture worker died: {_last_line(error)}")
                self.pool.rest(worker)
            except FeaturesLost as error:
                reasons.append(str(error))
            except (RayTaskError, ContractError) as error:
                reasons.append(self._blame(error))
                if len(prompts) > 1:
                    return [self._resolve([prompt], self.sender.submit(self.pool.send, [prompt]))[0] for prompt in prompts]
            if len(reasons) == self.max_tries:
                return [self.drop(prompt, reasons) for prompt in prompts]
            worker, reference = self.pool.send(prompts)

    def _blame(self, error: RayTaskError | ContractError) -> str:
        """Why a prompt's capture failed; raises what no retry would mend."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, EngineMismatch | TransferDown):
            raise error.cause from error
        return _last_line(error)

    def _receive(self, worker: int, reference: ray.ObjectRef) -> list[Wire]:
        try:
            return [self.transfer.get(ticket) for ticket in ray.get(reference)]
        finally:
            self.pool.done(worker)

    def verify(self, prompts: list[Prompt]) -> None:
        """Each worker compares its engine with the target's files."""
        try:
            ray.get([worker.verify.remote(prompts) for worker in self.pool.workers])
        except RayTaskError as error:
            raise error.cause from error

    def drop(self, prompt: Prompt, reasons: list[str]) -> Features:
        """Writes the sample down and returns an empty document in its place, which has no supervised token."""
        self.dropped += 1
        with self.file.open("a") as lines:
            lines.write(json.dumps({"sample": prompt.index, "reasons": reasons}) + "\n")
        if self.dropped > self.most_dropped:
            raise UserError(
                f"{self.dropped} samples could not be captured, more than inference.max_dropped allows; {self.file.resolve()} lists them, "
                f"the last because: {reasons[-1]}"
            )
        empty = Prompt(prompt.index, prompt.ids[:2], torch.zeros(2, dtype=torch.bool))
        return Features(empty, torch.zeros(2, self.width, dtype=self.dtype, device=self.device), self.layer_ids, "dropped")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
