"""A port of an engine's process from which the states of a prompt are fetched over the network, once, by whoever knows their name."""

import os
import re
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

IDLE = 60.0  # seconds after which a connection that neither asks nor reads is closed


def open_port(folder: Path, names: re.Pattern, listen: str) -> ThreadingHTTPServer:
    """listen: host:port, where port 0 takes a free one. Files of the folder whose whole name matches are handed out; nothing is listed."""
    host, _, port = listen.rpartition(":")
    server = Port((host, int(port)), partial(Handler, folder, names))
    threading.Thread(target=server.serve_forever, daemon=True, name="torchspec features").start()
    return server


class Port(ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait to be accepted: all ranks may come at once


class Handler(BaseHTTPRequestHandler):
    timeout = IDLE

    def __init__(self, folder: Path, names: re.Pattern, *connection):
        self.folder, self.names = folder, names
        super().__init__(*connection)

    def do_GET(self) -> None:
        states = self._claim(self.path.removeprefix("/"))
        if states is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with states:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(os.fstat(states.fileno()).st_size))
            self.end_headers()
            try:
                self.connection.sendfile(states)
            except ConnectionError:  # the asker has gone; it asks for the prompt again, by another name
                return

    def _claim(self, name: str) -> BinaryIO | None:
        """The file's name goes before its contents are sent: nobody else, and no second request, gets them."""
        if not self.names.fullmatch(name):
            return None
        try:
            states = (self.folder / name).open("rb")
            (self.folder / name).unlink()
        except FileNotFoundError:
            return None
        return states

    def log_message(self, *_) -> None:
        """The engine's log is its own."""
