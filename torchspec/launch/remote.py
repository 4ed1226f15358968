"""A trainer rank's features from capture workers, or from servers that already run.

A sample that fails `max_tries` times is dropped: it counts, it is listed in dropped.jsonl, and an empty document stands in for it so
that all ranks keep step.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from torchspec.config import RunConfig
from torchspec.errors import ContractError, EngineMismatch, FeaturesLost, UserError
from torchspec.nn.device import resolve_dtype
from torchspec.nn.staging import CopyStream, copy_stream
from torchspec.records import Features, Prompt
from torchspec.transfer.codec import Wire, decode


class Pool(Protocol):
    """Those who capture for a rank: actors of Ray, or servers. Two threads use it."""

    def send(self, prompts: list[Prompt]) -> object:
        """Asks for the features of a micro-batch; what it returns is for `receive`, once."""
        ...

    def receive(self, request: object) -> list[Wire]:
        """Waits for them. FeaturesLost: ask again. Another ContractError than EngineMismatch: a prompt of these may be to blame."""
        ...

    def verify(self, prompts: list[Prompt]) -> None:
        """Each of them compares its engine with the target's files."""
        ...

    def producer(self) -> str:
        """What they capture with; waits until they can."""
        ...


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

    def __init__(self, pool: Pool, config: RunConfig, layer_ids: tuple[int, ...], width: int, samples: int, device: torch.device):
        self.pool, self.layer_ids, self.width, self.device = pool, layer_ids, width, device
        self.dtype, self.max_tries = resolve_dtype(config.model.dtype), config.inference.max_tries
        self.dropped, self.most_dropped = 0, int(config.inference.max_dropped * samples)
        self.file = Path(config.output_dir) / "dropped.jsonl"
        self.sender, self.receiver = (ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) for name in ("requests", "features"))
        self.producer = pool.producer()

    def request(self, prompts: list[Prompt]) -> Arriving:
        """The features of one micro-batch."""
        stream, sent = copy_stream(self.device), self.sender.submit(self.pool.send, prompts)
        return Arriving(self.receiver.submit(stream.run, self._resolve, prompts, sent), stream)

    def capture(self, prompt: Prompt) -> Features:
        return self.request([prompt]).result()[0]

    def _resolve(self, prompts: list[Prompt], sent: Future) -> list[Features]:
        """Waits for the answer; asks again where it was lost, and for each prompt alone where one of several is to blame."""
        request, reasons = sent.result(), []
        while True:
            try:
                wires = self.pool.receive(request)
                return [decode(wire, prompt, self.device, self.dtype) for wire, prompt in zip(wires, prompts, strict=True)]
            except FeaturesLost as error:
                reasons.append(str(error))
            except EngineMismatch:  # no retry would mend it
                raise
            except ContractError as error:
                reasons.append(str(error))
                if len(prompts) > 1:
                    return [self._resolve([prompt], self.sender.submit(self.pool.send, [prompt]))[0] for prompt in prompts]
            if len(reasons) == self.max_tries:
                return [self.drop(prompt, reasons) for prompt in prompts]
            request = self.pool.send(prompts)

    def verify(self, prompts: list[Prompt]) -> None:
        self.pool.verify(prompts)

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
