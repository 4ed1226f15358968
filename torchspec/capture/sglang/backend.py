"""Capture with SGLang (tested 0.5.23): an engine in the worker's process, or a running server on the same node."""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import requests
import sglang

from torchspec.capture import shared_memory
from torchspec.capture.base import CaptureSpec
from torchspec.capture.outside import OutsideCapture
from torchspec.capture.sglang.hook import MARK, MODULES, recorder
from torchspec.capture.sglang.states import convention
from torchspec.capture.shared_memory import States
from torchspec.errors import UserError
from torchspec.records import Prompt
from torchspec.target.model import load_config

ONE_TOKEN = {"temperature": 0.0, "max_new_tokens": 1}
SERVER_PATIENCE = 300.0  # seconds for one prompt, other users' requests before it included


class SGLangCapture(OutsideCapture):
    """SGLang counts layers as we do (z-ids), and cannot name the last one: the hook takes that one's output before the final norm."""

    def __init__(self, spec: CaptureSpec):
        super().__init__(spec, f"sglang {sglang.__version__}")
        last = load_config(spec.folder, spec.trust_remote_code).num_hidden_layers - 1
        asked = [z for z in spec.layer_ids if z < last]
        if not asked:
            raise UserError(f"layer ids {list(spec.layer_ids)}: SGLang captures the last layer only beside others; add one below it")
        self.engine = Engine(spec, asked) if spec.server_url is None else Server(spec, asked)
        self.folder = self.engine.folder

    def run(self, prompts: Sequence[Prompt]) -> tuple[list[States], list[int]]:
        names = [f"{MARK}{uuid.uuid4().hex}" for _ in prompts]
        tokens = self.engine.next_tokens([prompt.ids.tolist() for prompt in prompts], names)
        return [shared_memory.take(self.folder, name, self.producer) for name in names], tokens

    def close(self) -> None:
        self.engine.close()


def settings(spec: CaptureSpec, layer_ids: list[int], folder: Path) -> dict:
    """What an engine must be told for its states to be whole and to reach us; names of SGLang's arguments."""
    config = {"folder": str(folder), "layers": len(spec.layer_ids), "fp8": spec.fp8}
    hook = {"name": "torchspec", "target_modules": MODULES, "hook_factory": f"{recorder.__module__}:{recorder.__name__}"}
    return {
        "speculative_algorithm": convention(architecture(spec.folder)),  # names the layer-id convention; there is no draft
        "enable_return_aux_hidden_states": True,
        "return_aux_hidden_state_layer_ids": layer_ids,
        "forward_hooks": [hook | {"config": config}],
        "disable_radix_cache": True,  # a cached prefix has no states
        "chunked_prefill_size": -1,  # a prompt runs in one step
        "disable_cuda_graph": True,  # replayed graphs call no hooks
    }


def architecture(folder: Path) -> str:
    """Of the target's whole model, not of the text model within; SGLang refuses a target that names none."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    return names[0] if names else ""


class Engine:
    """SGLang in this process and its children."""

    def __init__(self, spec: CaptureSpec, layer_ids: list[int]):
        self.folder = shared_memory.new_folder()
        on_cpu = {"device": "cpu", "attention_backend": "torch_native", "sampling_backend": "pytorch"}
        self.engine = sglang.Engine(
            model_path=str(spec.folder),
            dtype=str(spec.dtype).removeprefix("torch."),
            tp_size=spec.num_devices,
            mem_fraction_static=spec.memory_fraction,
            trust_remote_code=spec.trust_remote_code,
            max_total_tokens=max(8192, 2 * spec.max_length),
            log_level="warning",
            **settings(spec, layer_ids, self.folder),
            **(on_cpu if spec.device.type == "cpu" else {}),
        )

    def next_tokens(self, ids: list[list[int]], names: list[str]) -> list[int]:
        return [answer["output_ids"][0] for answer in self.engine.generate(input_ids=ids, sampling_params=ONE_TOKEN, rid=names)]

    def close(self) -> None:
        self.engine.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)


class Server:
    """A server that somebody else started, on this node: the states come through its folder in shared memory."""

    def __init__(self, spec: CaptureSpec, layer_ids: list[int]):
        self.url = spec.server_url.rstrip("/")
        self.session = requests.Session()
        self.folder = self._check(spec, layer_ids)

    def next_tokens(self, ids: list[list[int]], names: list[str]) -> list[int]:
        answers = self._ask("POST", "/generate", {"input_ids": ids, "sampling_params": ONE_TOKEN, "rid": names})
        return [answer["output_ids"][0] for answer in answers]

    def close(self) -> None:
        self.session.close()

    def _ask(self, method: str, path: str, body: dict | None = None) -> dict | list:
        try:
            answer = self.session.request(method, self.url + path, json=body, timeout=SERVER_PATIENCE)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise UserError(f"inference.server_url={self.url}: {path} failed ({error}); is an SGLang server running there?") from error
        return answer.json()

    def _check(self, spec: CaptureSpec, layer_ids: list[int]) -> Path:
        """The folder that the server's hook writes to; an error with the right command where the server was started otherwise."""
        running = self._ask("GET", "/server_info")
        hooks = [hook for hook in running["forward_hooks"] or [] if hook["name"] == "torchspec"]
        folder = Path(hooks[0]["config"]["folder"]) if hooks else shared_memory.ROOT / "torchspec-server"
        wanted = settings(spec, layer_ids, folder) | {"speculative_algorithm": None}  # SGLang forgets it once it has chosen the convention
        wrong = [f"{name}={running[name]!r}" for name, value in wanted.items() if running[name] != value]
        if wrong:
            raise UserError(
                f"inference.server_url={self.url} was started with {', '.join(wrong)}; it captures these layers when started as: "
                f"{command(spec, layer_ids, folder)}"
            )
        if not folder.is_dir():
            raise UserError(f"inference.server_url={self.url} writes its states to {folder}, which is not here; run the worker on its node")
        return folder


def command(spec: CaptureSpec, layer_ids: list[int], folder: Path) -> str:
    """The shell command that starts a server which captures these layers."""
    words = ["python -m sglang.launch_server", f"--model-path {spec.folder}", f"--dtype {str(spec.dtype).removeprefix('torch.')}"]
    for name, value in settings(spec, layer_ids, folder).items():
        flag = f"--{name.replace('_', '-')}"
        if name == "forward_hooks":
            words.append(f"{flag} '{json.dumps(value)}'")
        elif isinstance(value, list):
            words.append(f"{flag} {' '.join(map(str, value))}")
        else:
            words.append(flag if value is True else f"{flag} {value}")
    return " ".join(words)
