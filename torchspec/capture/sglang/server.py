"""A running SGLang server (tested 0.5.23) that was started with our hook; SGLang need not be installed here."""

import json
import shlex

from torchspec.capture.base import CaptureSpec
from torchspec.capture.http import call_json
from torchspec.capture.outbox import Delivery
from torchspec.capture.server import server_words, wanted_delivery
from torchspec.capture.sglang.settings import ONE_TOKEN, asked_layers, given, settings
from torchspec.errors import UserError


class SGLangServer:
    def __init__(self, spec: CaptureSpec, url: str):
        self.url, layer_ids = url, asked_layers(spec)
        running = call_json(f"{url}/server_info")
        self.engine = f"sglang {running['version']}"
        self.delivery = wanted_delivery(spec, url, given(running["forward_hooks"]))
        wanted = settings(layer_ids, self.delivery)
        wrong = [f"{name}={running[name]!r}" for name, value in wanted.items() if running[name] != value]
        if wrong:
            raise UserError(
                f"inference.server_url={url} was started with {', '.join(wrong)}; it captures these layers when started as: "
                f"{command(spec, url, layer_ids, self.delivery)}"
            )

    def next_token(self, ids: list[int], name: str) -> int:
        return call_json(f"{self.url}/generate", {"input_ids": ids, "sampling_params": ONE_TOKEN, "rid": name})["output_ids"][0]


def command(spec: CaptureSpec, url: str, layer_ids: list[int], delivery: Delivery) -> str:
    """The shell command that starts a server which captures these layers.

    DFLASH names how layers are counted, there is no draft; a model that SGLang has no such list for (Qwen2, GLM-4) takes EAGLE3, the same.
    """
    words = ["python", "-m", "sglang.launch_server", "--model-path", str(spec.folder), *server_words(spec, url)]
    words += ["--speculative-algorithm", "DFLASH"]
    for name, value in settings(layer_ids, delivery).items():
        words.append(f"--{name.replace('_', '-')}")
        if name == "forward_hooks":
            words.append(json.dumps(value))
        elif isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)
