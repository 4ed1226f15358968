"""Capture with SGLang (tested 0.5.23): an engine in the worker's process and its children."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import sglang

import torchspec.capture.sglang.hook  # noqa: F401 - where it does not fit this SGLang, it is said here, before an engine starts
from torchspec.capture import shared_memory
from torchspec.capture.base import CaptureSpec
from torchspec.capture.outbox import Delivery, new_name
from torchspec.capture.outside import OutsideCapture
from torchspec.capture.sglang.settings import ONE_TOKEN, asked_layers, settings
from torchspec.capture.sglang.states import convention
from torchspec.capture.shared_memory import States
from torchspec.records import Prompt


class SGLangCapture(OutsideCapture):
    def __init__(self, spec: CaptureSpec):
        super().__init__(spec, f"sglang {sglang.__version__}")
        asked, self.folder = asked_layers(spec), shared_memory.new_folder()
        on_cpu = {"device": "cpu", "attention_backend": "torch_native", "sampling_backend": "pytorch"}
        self.engine = sglang.Engine(
            model_path=str(spec.folder),
            dtype=str(spec.dtype).removeprefix("torch."),
            tp_size=spec.num_devices,
            mem_fraction_static=spec.memory_fraction,
            trust_remote_code=spec.trust_remote_code,
            max_total_tokens=max(8192, 2 * spec.max_length),
            log_level="warning",
            speculative_algorithm=convention(architecture(spec.folder)),  # names the layer-id convention; there is no draft
            **settings(asked, Delivery(str(self.folder), list(spec.layer_ids), spec.fp8)),
            **(on_cpu if spec.device.type == "cpu" else {}),
        )

    def run(self, prompts: Sequence[Prompt]) -> tuple[list[States], list[int]]:
        ids, names = [prompt.ids.tolist() for prompt in prompts], [new_name() for _ in prompts]
        answers = self.engine.generate(input_ids=ids, sampling_params=ONE_TOKEN, rid=names)
        states = [shared_memory.take(self.folder, name, self.producer) for name in names]
        return states, [answer["output_ids"][0] for answer in answers]

    def close(self) -> None:
        self.engine.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


def architecture(folder: Path) -> str:
    """Of the target's whole model, not of the text model within; SGLang refuses a target that names none."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    return names[0] if names else ""
