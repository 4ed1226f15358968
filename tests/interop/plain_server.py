"""An SGLang server that was started plainly, as a client sees it: the answers of a running one, with a plain start's settings in them."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

SETTINGS = {
    "enable_return_aux_hidden_states": False, "return_aux_hidden_state_layer_ids": None, "forward_hooks": None,
    "disable_radix_cache": False,
}  # fmt: skip


@contextmanager
def plain_server(running: str) -> Iterator[str]:
    """running: the URL of a server that captures. -> the URL of one that does not"""

    class Plain(BaseHTTPRequestHandler):
        def do_GET(self):
            with urllib.request.urlopen(running + self.path, timeout=60) as answer:
                settings = json.load(answer)
            assert settings.keys() >= SETTINGS.keys()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(settings | SETTINGS).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Plain) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
