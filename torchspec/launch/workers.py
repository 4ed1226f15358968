"""The capture workers of a run, and the pool that a trainer rank asks.

A worker that dies is started again by Ray; its requests go to the others meanwhile.
"""

import os
import threading
import time
from pathlib import Path

import ray
import transformers
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from torchspec.capture.engine import capture_spec, open_engine
from torchspec.config import RunConfig
from torchspec.errors import ContractError, EngineMismatch, FeaturesLost, TransferDown, UserError
from torchspec.nn.device import resolve_device
from torchspec.records import Prompt
from torchspec.transfer.base import Transfer, open_transfer
from torchspec.transfer.codec import Wire, encode

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

    def __init__(self, workers: list, transfer: Transfer):
        """transfer: the rank's end."""
        self.workers, self.transfer, self.lock = workers, transfer, threading.Lock()
        self.under_way = [0] * len(workers)
        self.resting: dict[int, ray.ObjectRef] = {}  # dead workers, and the question that they will answer once restarted
        self.given_up = False

    def send(self, prompts: list[Prompt]) -> tuple[int, ray.ObjectRef]:
        with self.lock:
            living = self._living() or self._wait_for_one()
            chosen = min(living, key=self.under_way.__getitem__)
            self.under_way[chosen] += 1
            return chosen, self.workers[chosen].capture.remote(prompts)

    def receive(self, request: tuple[int, ray.ObjectRef]) -> list[Wire]:
        worker, reference = request
        try:
            return [self.transfer.get(ticket) for ticket in ray.get(reference)]
        except RayActorError as error:
            self.rest(worker)
            raise FeaturesLost(f"the capture worker died: {last_line(error)}") from error
        except RayTaskError as error:
            if isinstance(error.cause, EngineMismatch | TransferDown):
                raise error.cause from error
            raise ContractError(last_line(error)) from error
        finally:
            with self.lock:
                self.under_way[worker] -= 1

    def verify(self, prompts: list[Prompt]) -> None:
        try:
            ray.get([worker.verify.remote(prompts) for worker in self.workers])
        except RayTaskError as error:
            raise error.cause from error

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
                raise UserError(f"a capture worker cannot start: {last_line(error)}") from error
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


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
