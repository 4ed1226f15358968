"""A running vLLM server (0.29 or newer) that was started with our connector; vLLM need not be installed here."""

import json
import shlex

from torchspec.capture.base import CaptureSpec
from torchspec.capture.http import call_json
from torchspec.capture.outbox import Delivery
from torchspec.capture.server import server_words, wanted_delivery
from torchspec.capture.vllm.settings import DELIVERY, NAME, settings
from torchspec.errors import UserError


class VLLMServer:
    """What a server was told only our connector says, with the answer to a request.

    A first prompt of one token asks for it, by no name, so that no states are kept.
    """

    def __init__(self, spec: CaptureSpec, url: str):
        self.url = url
        self.engine = f"vllm {call_json(f'{url}/version')['version']}"
        self.model = call_json(f"{url}/v1/models")["data"][0]["id"]
        found = (self._complete([0], "").get("kv_transfer_params") or {}).get(DELIVERY)
        self.delivery = wanted_delivery(spec, url, found)
        if found != vars(self.delivery):
            raise UserError(
                f"inference.server_url={url} was started with {'no connector of torchspec' if found is None else found}; it captures these "
                f"layers when started as: {command(spec, url, self.delivery)}"
            )

    def next_token(self, ids: list[int], name: str) -> int:
        return self._complete(ids, name)["choices"][0]["token_ids"][0]

    def _complete(self, ids: list[int], name: str) -> dict:
        body = {"model": self.model, "prompt": ids, "temperature": 0.0, "max_tokens": 1, "return_token_ids": True}
        return call_json(f"{self.url}/v1/completions", body | {"kv_transfer_params": {NAME: name}})


def command(spec: CaptureSpec, url: str, delivery: Delivery) -> str:
    """The shell command that starts a server which captures these layers."""
    words = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", str(spec.folder), *server_words(spec, url)]
    for name, value in settings(spec, delivery).items():
        flag = name.replace("_", "-")
        words.append(f"--no-{flag}" if value is False else f"--{flag}")
        if not isinstance(value, bool):
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return shlex.join(words)
