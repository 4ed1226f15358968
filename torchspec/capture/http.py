"""Requests to a server: what it answers, or that it is down, or why it refuses."""

import json
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from urllib.parse import urlsplit

from torchspec.errors import ContractError, UserError

CONNECT = 10.0  # seconds until a node that does not answer counts as down
PATIENCE = 300.0  # seconds for one prompt, other users' requests before it included
TEXT = 64 * 2**20  # bytes of an answer in JSON, at most
BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)  # it lives and can do no more now


class ServerDown(UserError):
    """It does not answer, is busy, or something inside of it is broken: another server may answer."""

    def __init__(self, reason: str, replied: bool = False):
        """replied: so the request itself may be at fault."""
        super().__init__(reason)
        self.replied = replied


class Refused(ContractError):
    """The request, by a server that works: no other would take it."""


def check_up(status: int, said: str) -> None:
    """Of a reply that is not OK: whether it is the server that fails. said: what it replied."""
    if status in BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise ServerDown(said, replied=status not in BUSY)


def call(url: str, limit: int, body: dict | None = None) -> bytes:
    """GET, or POST where there is a body. limit: bytes of the largest answer that can be meant."""
    where, data = urlsplit(url), None if body is None else json.dumps(body).encode()
    connection = HTTPConnection(where.hostname, where.port, timeout=CONNECT)
    try:
        connection.connect()
        connection.sock.settimeout(PATIENCE)
        connection.request("GET" if data is None else "POST", where.path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        received = answer.read(limit + 1)
    except (OSError, HTTPException) as error:  # refused, reset, cut off, or silent for too long
        raise ServerDown(f"{url} does not answer ({error})") from error
    finally:
        connection.close()
    if answer.status != HTTPStatus.OK:
        said = f"{url} answered {answer.status} {answer.reason}: {received[:500].decode(errors='replace').strip()}"
        check_up(answer.status, said)
        raise Refused(said)
    if len(received) > limit:
        raise ContractError(f"{url} answered with more than {limit} bytes, which is more than was asked for")
    if answer.length:  # bytes that were promised and did not come
        raise ServerDown(f"{url} broke off {answer.length} bytes before the end of its answer")
    return received


def call_json(url: str, body: dict | None = None) -> dict:
    answer = call(url, TEXT, body)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise ContractError(f"{url} answered with something else than JSON: {answer[:80]!r}") from error


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # the name of another node, or of this one as others see it
        return False
