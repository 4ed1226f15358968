"""A small server that speaks SGLang's protocol and runs a real tiny target with Transformers; its states leave by the real outbox."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from torchspec.capture.check import _run
from torchspec.capture.hf import HFCapture
from torchspec.capture.outbox import Delivery, Outbox
from torchspec.capture.sglang.settings import settings
from torchspec.records import Prompt

MODEL = threading.Lock()  # servers may share one, whose hooks serve one thread at a time


class TinyServer:
    """delivery: what it is told, as by SGLang's command line; host: where it listens, also for its features where the delivery says so."""

    def __init__(self, oracle: HFCapture, delivery: Delivery, model: str, host: str = "127.0.0.1"):
        self.oracle, self.delivery, self.asked, self.broken = oracle, delivery, [], False
        self.outbox = Outbox(delivery, model)
        self.admitted, self.answers_until = 0, float("inf")  # prompts
        self.breaks_on: list[int] | None = None  # ids of a prompt
        self.http = ThreadingHTTPServer((host, 0), type("Handler", (Handler,), {"tiny": self}))
        self.lock = threading.Lock()
        self.url = f"http://{host}:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def info(self) -> dict:
        layers = self.oracle.layer_ids
        return {"version": "0.5.23", **settings([z for z in layers if z < 5], self.delivery)}

    @torch.inference_mode()
    def generate(self, ids: list[int], name: str) -> int:
        with MODEL:
            prompt = Prompt(0, torch.tensor(ids), torch.arange(len(ids)) > 0)
            logits, states = _run(self.oracle, prompt)
            self.outbox.put(name, self.oracle.capture(prompt).context, states[-1][-1])
            self.asked.append(ids)
            return int(logits[-1].argmax())

    def admits(self) -> bool:
        with self.lock:
            self.admitted += 1
            return not self.broken and self.admitted <= self.answers_until

    def stop(self) -> None:
        """As if it were killed: nothing listens, and what comes on open connections is cut off."""
        if self.broken:
            return
        self.broken = True
        self.http.shutdown()
        self.http.server_close()


class Handler(BaseHTTPRequestHandler):
    tiny: TinyServer

    def do_GET(self) -> None:
        self._answer(self.tiny.info())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.tiny.admits():
            self.close_connection = True  # without an answer
            return
        if max(body["input_ids"]) >= len(self.tiny.oracle.model.get_input_embeddings().weight):
            self.send_error(400, "no such token")
            return
        if body["input_ids"] == self.tiny.breaks_on:
            self.send_error(500, "out of memory")
            return
        self._answer({"output_ids": [self.tiny.generate(body["input_ids"], body["rid"])]})

    def _answer(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass
