"""Capture with vLLM (>= 0.29): one engine per worker, prompts run whole, states come back through shared memory."""

import shutil
from collections.abc import Sequence

import vllm
from vllm import LLM, SamplingParams

from torchspec.capture import shared_memory
from torchspec.capture.base import CaptureSpec
from torchspec.capture.outside import OutsideCapture
from torchspec.capture.shared_memory import States
from torchspec.capture.vllm.connector import FOLDER, FP8, LAYERS, NAME, STATES, SharedMemoryConnector
from torchspec.records import Prompt
from torchspec.target.model import load_config


class VLLMCapture(OutsideCapture):
    """vLLM counts layers that have run: the output of layer z is its id z + 1, the last layer's is N, before the final norm."""

    def __init__(self, spec: CaptureSpec):
        super().__init__(spec, f"vllm {vllm.__version__}")
        self.folder = shared_memory.new_folder()
        config = load_config(spec.folder, spec.trust_remote_code)
        states = sorted({z + 1 for z in spec.layer_ids} | {config.num_hidden_layers})  # a method may want the last layer itself
        longest = min(spec.max_length + 1, config.max_position_embeddings)
        self.engine = LLM(
            str(spec.folder),
            dtype=str(spec.dtype).removeprefix("torch."),
            tensor_parallel_size=spec.num_devices,
            gpu_memory_utilization=spec.memory_fraction,  # on a CPU of the host's memory, unless VLLM_CPU_KVCACHE_SPACE is set
            trust_remote_code=spec.trust_remote_code,
            max_model_len=longest,
            max_num_batched_tokens=max(2048, longest),  # a prompt runs in one step
            enable_prefix_caching=False,  # a cached prefix has no states
            enable_chunked_prefill=False,
            enforce_eager=True,
            speculative_config={
                "method": "extract_hidden_states",
                "num_speculative_tokens": 1,
                "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": states}},
            },
            kv_transfer_config={
                "kv_connector": SharedMemoryConnector.__name__,
                "kv_connector_module_path": SharedMemoryConnector.__module__,
                "kv_role": "kv_producer",
                "kv_connector_extra_config": {
                    FOLDER: str(self.folder),
                    LAYERS: len(spec.layer_ids),
                    STATES: len(states),
                    FP8: spec.fp8,
                },  # fmt: skip
            },
        )

    def run(self, prompts: Sequence[Prompt]) -> tuple[list[States], list[int]]:
        names = [f"{prompt.index}.safetensors" for prompt in prompts]
        sampling = [SamplingParams(temperature=0.0, max_tokens=1, extra_args={"kv_transfer_params": {NAME: name}}) for name in names]
        answers = self.engine.generate([{"prompt_token_ids": p.ids.tolist()} for p in prompts], sampling, use_tqdm=False)
        states = [shared_memory.take(self.folder, name, self.producer) for name in names]
        return states, [answer.outputs[0].token_ids[0] for answer in answers]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
