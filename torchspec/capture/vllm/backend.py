"""Capture with vLLM (>= 0.29): one engine per worker, prompts run whole, states come back through shared memory."""

import shutil
from collections.abc import Sequence

import vllm
from vllm import LLM, SamplingParams

import torchspec.capture.vllm.connector  # noqa: F401 - where it does not fit this vLLM, it is said here, before an engine starts
from torchspec.capture import shared_memory
from torchspec.capture.base import CaptureSpec
from torchspec.capture.outbox import Delivery, new_name
from torchspec.capture.outside import OutsideCapture
from torchspec.capture.shared_memory import States
from torchspec.capture.vllm.settings import NAME, settings
from torchspec.records import Prompt


class VLLMCapture(OutsideCapture):
    def __init__(self, spec: CaptureSpec):
        super().__init__(spec, f"vllm {vllm.__version__}")
        self.folder = shared_memory.new_folder()
        self.engine = LLM(
            str(spec.folder),
            dtype=str(spec.dtype).removeprefix("torch."),
            tensor_parallel_size=spec.num_devices,
            # inside of a placement group vLLM would take Ray for it, and a bundle per GPU; a worker has all of its own on one node
            distributed_executor_backend="mp" if spec.num_devices > 1 else None,
            gpu_memory_utilization=spec.memory_fraction,  # on a CPU of the host's memory, unless VLLM_CPU_KVCACHE_SPACE is set
            trust_remote_code=spec.trust_remote_code,
            **settings(spec, Delivery(str(self.folder), list(spec.layer_ids), spec.fp8)),
        )

    def run(self, prompts: Sequence[Prompt]) -> tuple[list[States], list[int]]:
        names = [new_name() for _ in prompts]
        sampling = [SamplingParams(temperature=0.0, max_tokens=1, extra_args={"kv_transfer_params": {NAME: name}}) for name in names]
        answers = self.engine.generate([{"prompt_token_ids": p.ids.tolist()} for p in prompts], sampling, use_tqdm=False)
        states = [shared_memory.take(self.folder, name, self.producer) for name in names]
        return states, [answer.outputs[0].token_ids[0] for answer in answers]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
