"""A server that speaks vLLM's protocol and knows its answers beforehand: python -m tests.unit.serve.engine --answers FILE ...

FILE maps a prompt ("1,2,3") to the ids of its answer and the drafts that each step accepted. It stands in for an engine, so that
what we ask, count and keep can be compared with what is known.
"""

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--answers", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--speculative-config", type=json.loads)
parser.add_argument("--dies-after", type=int, default=10**9, help="answers")
parser.add_argument("--dies-at-once", action="store_true")
parser.add_argument("--temperature", type=float, default=0.0, help="that every prompt must be asked with")
parser.add_argument("--asked", help="file that gets a line for every prompt")
OPTIONS, _ = parser.parse_known_args()
ANSWERS = json.load(open(OPTIONS.answers))
LOCK, COUNTS = Lock(), {"answers": 0, "steps": 0, "accepted": [0] * 16}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        per_slot = "".join(
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{k}"}} {count}.0\n'
            for k, count in enumerate(COUNTS["accepted"][: OPTIONS.speculative_config["num_speculative_tokens"]])
        ) if OPTIONS.speculative_config else ""  # fmt: skip
        answers = {
            "/health": "",
            "/version": json.dumps({"version": "0.0-test"}),
            "/v1/models": json.dumps({"object": "list", "data": [{"id": "the model", "object": "model", "created": 0, "owned_by": ""}]}),
            "/metrics": f'# TYPE vllm:spec_decode_num_drafts counter\nvllm:spec_decode_num_drafts_total{{engine="0"}} {COUNTS["steps"]}.0\n'
            f"# TYPE vllm:spec_decode_num_accepted_tokens_per_pos counter\n{per_slot}",
        }
        self.answer(answers[self.path].encode(), "application/json" if self.path != "/metrics" else "text/plain")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = ",".join(map(str, body["prompt"]))
        answer = ANSWERS[prompt]
        assert body["return_token_ids"] and body["stream"] and body["temperature"] == OPTIONS.temperature
        with LOCK:
            COUNTS["answers"] += 1
            if OPTIONS.asked:
                print(prompt, file=open(OPTIONS.asked, "a"))
            if COUNTS["answers"] > OPTIONS.dies_after:
                os._exit(1)
            if OPTIONS.speculative_config:
                COUNTS["steps"] += len(answer["accepted"])
                for count in answer["accepted"]:
                    for k in range(count):
                        COUNTS["accepted"][k] += 1
        chunks = [answer["ids"][:1], answer["ids"][1:]]
        events = [{"id": "x", "object": "text_completion", "created": 0, "model": body["model"],
                   "choices": [{"index": 0, "text": "", "finish_reason": None, "token_ids": ids}]} for ids in chunks]  # fmt: skip
        self.answer("".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n", "text/event-stream")

    def answer(self, content: bytes, kind: str):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if OPTIONS.dies_at_once:
        print("loading", "ValueError: no such model", "raise RuntimeError(", "RuntimeError: failed, see root cause above", "bye", sep="\n")
        sys.exit(3)
    ThreadingHTTPServer(("127.0.0.1", OPTIONS.port), Handler).serve_forever()
