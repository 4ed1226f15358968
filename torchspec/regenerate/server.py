"""One server that runs the target: who it is, what it serves, and one answer of it."""

from dataclasses import dataclass, field
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter

from torchspec.capture.http import Refused, ServerDown, check_up
from torchspec.errors import UserError
from torchspec.regenerate.protocol import ANY, PROTOCOLS, Protocol, Request, Written
from torchspec.serve.engines import ENGINES

CONNECT, PATIENCE = 10.0, 1800.0  # seconds until a server takes a request, and until it has answered
OF_ONE_PROMPT = (400, 413, 422)  # too long, or not to be read; all other refusals are meant for everybody


@dataclass
class Server:
    url: str
    engine: str  # as it calls itself
    model: str  # among those that it serves
    version: str
    session: requests.Session = field(default_factory=requests.Session, repr=False)

    @classmethod
    def at(cls, url: str, target: Path, in_flight: int) -> "Server":
        url = url.rstrip("/").removesuffix("/v1")
        try:
            listed = requests.get(f"{url}/v1/models", timeout=CONNECT).json()["data"]
        except (requests.RequestException, KeyError, TypeError) as error:
            raise UserError(
                f"--server {url} lists no models ({_short(error)}); give the URL of a running server, as http://host:8000"
            ) from error
        model = _model(url, listed, target)
        engine = str(model.get("owned_by") or "openai")
        version = ENGINES[engine].version(url) if engine in PROTOCOLS else "of unknown version"
        server = cls(url, engine, model["id"], version)
        for scheme in ("http://", "https://"):
            server.session.mount(scheme, HTTPAdapter(pool_maxsize=in_flight))  # a connection for each request at a time
        return server

    @property
    def protocol(self) -> Protocol:
        return PROTOCOLS.get(self.engine, ANY)

    def answer(self, request: Request) -> Written:
        said = self._post(self.protocol.path, self.protocol.body(self.model, request))
        try:
            written = self.protocol.read(said)
        except (KeyError, IndexError, TypeError) as error:
            raise ServerDown(f"a reply that is none of {self.engine}'s: {str(said)[:200]}", replied=True) from error
        if written.finish not in ("stop", "length"):
            raise ServerDown(f"the answer ended by {written.finish!r}", replied=True)
        if written.read not in (None, len(request.prompt)):
            raise UserError(
                f"{self.url} read {written.read} tokens where {len(request.prompt)} were sent: it adds or cuts some; look at its log"
            )
        return written

    def token_ids(self, text: str) -> list[int] | None:
        """Of its own tokenizer; None where it shows none."""
        if self.protocol.tokenize is None:
            return None
        return self._post("tokenize", self.protocol.tokenize(self.model, text))["tokens"]

    def _post(self, path: str, body: dict) -> dict:
        try:
            reply = self.session.post(f"{self.url}/{path}", json=body, timeout=(CONNECT, PATIENCE))
            if reply.ok:
                return reply.json()
        except requests.RequestException as error:
            raise ServerDown(_short(error)) from error
        said = f"status {reply.status_code}: {reply.text[:200]}"
        check_up(reply.status_code, said)
        if reply.status_code in OF_ONE_PROMPT:
            raise Refused(said)
        raise UserError(f"{self.url}/{path} takes no request of ours ({said}); give a server that answers /{path}, and without a key")


def _model(url: str, listed: list[dict], target: Path) -> dict:
    """The only one, or the one that is called like the target."""
    if len(listed) == 1:
        return listed[0]
    names = {target.name, str(target), str(target.resolve())}
    alike = [model for model in listed if {model["id"], model["id"].rpartition("/")[2], model.get("root")} & names]
    if len(alike) == 1:
        return alike[0]
    served = ", ".join(model["id"] for model in listed) or "no model"
    raise UserError(f"--server {url} serves {served}, and it is open which of them is {target.name}; give a server of the target alone")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
