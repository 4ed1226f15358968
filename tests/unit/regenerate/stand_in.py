"""A server in a thread that speaks an engine's protocol, for the network alone: what it answers comes from a function of ids."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

Write = Callable[[list[int], int, float, int], list[int]]  # prompt, most new tokens, temperature, seed -> ids, stop token included


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, engine: str, write: Write, tokenizer, stop: frozenset[int]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.write, self.tokenizer, self.stop = engine, write, tokenizer, stop
        self.models = [{"id": "the target", "owned_by": engine}]
        self.status: Callable[[list[int]], int] = lambda prompt: 200
        self.bodies, self.at_once, self.most_at_once, self.lock = [], 0, 0, Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, address) -> None:
        """A client that has gone is no news."""


@contextmanager
def stand_in(engine: str, write: Write, tokenizer, stop: frozenset[int]):
    server = StandIn(engine, write, tokenizer, stop)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        said = {
            "/v1/models": {"object": "list", "data": self.server.models},
            "/version": {"version": "1.2"},
            "/server_info": {"version": "1.2"},
            "/props": {"build_info": "1.2"},
        }
        self.say(200, said[self.path])

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            text = body["content"] if self.server.engine == "llamacpp" else body["prompt"]
            return self.say(200, {"tokens": self.server.tokenizer(text, add_special_tokens=False).input_ids})
        prompt, most, temperature, seed = self.asked(body)
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            status = self.server.status(prompt)
            said = self.reply(prompt, self.server.write(prompt, most, temperature, seed)) if status == 200 else {"error": "no"}
        finally:
            with self.server.lock:
                self.server.at_once -= 1
        self.say(status, said)

    def asked(self, body: dict) -> tuple[list[int], int, float, int]:
        if self.server.engine == "sglang":
            sampling = body["sampling_params"]
            return body["input_ids"], sampling["max_new_tokens"], sampling["temperature"], sampling["sampling_seed"]
        return body["prompt"], body.get("max_tokens") or body["n_predict"], body["temperature"], body["seed"]

    def reply(self, prompt: list[int], ids: list[int]) -> dict:
        finish, text = "stop" if ids[-1] in self.server.stop else "length", self.server.tokenizer.decode(ids, skip_special_tokens=True)
        counts = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        if self.server.engine == "sglang":
            return {"text": text, "output_ids": ids, "meta_info": {"finish_reason": {"type": finish}, **counts}}
        if self.server.engine == "llamacpp":
            ended = {"stop": "eos", "length": "limit"}[finish]
            return {"content": text, "tokens": ids, "stop_type": ended, "tokens_evaluated": len(prompt), "tokens_predicted": len(ids)}
        own = {"token_ids": ids} if self.server.engine == "vllm" else {}
        return {"choices": [{"text": text, "finish_reason": finish, **own}], "usage": counts}

    def say(self, status: int, said: dict):
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
