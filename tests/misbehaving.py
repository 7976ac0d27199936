"""A small HTTP server that does to each request what a list says, then what is last in it: answers wrongly, late or not at all,
or hands the request to a real service behind it."""

import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import httpx


@dataclass(frozen=True)
class Says:
    """An answer of its own."""

    status: int
    body: bytes = b"<html>sorry</html>"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hangs:
    """Answers nothing for so many seconds, then closes."""

    seconds: float = 30.0


@dataclass(frozen=True)
class Drips:
    """An answer of one byte at a time, each after a pause."""

    pause_s: float = 0.1


class Closes:
    """Closes the connection instead of answering."""


class Forwards:
    """The answer of the real service."""


class Swallows:
    """The real service gets the request; its answer is lost."""


class Truncates:
    """Half of an answer."""


Act = Says | Hangs | Drips | Closes | Forwards | Swallows | Truncates


class Misbehaving:
    """Serves on loopback for the length of a `with`. behind: base URL of the real service. heads: of every request, in order."""

    def __init__(self, acts: Sequence[Act], behind: str = "") -> None:
        self.acts, self.behind = list(acts), behind
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                # Clients that waited long enough are gone.
                with suppress(OSError):
                    owner.handle(self)

            do_GET = do_POST

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        act = self.acts[min(len(self.heads), len(self.acts) - 1)]
        self.times.append(time.monotonic())
        self.bodies.append(body)
        self.heads.append({name.lower(): value for name, value in request.headers.items()})
        if isinstance(act, Says):
            _answer(request, act.status, act.body, act.headers)
        elif isinstance(act, Forwards | Swallows):
            told = httpx.request(request.command, self.behind + request.path, content=body, headers=self.heads[-1], timeout=30)
            if isinstance(act, Forwards):
                _answer(request, told.status_code, told.content, dict(told.headers))
        elif isinstance(act, Truncates):
            request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
        elif isinstance(act, Drips):
            request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            while not self._over.wait(act.pause_s):
                request.wfile.write(b" ")
        elif isinstance(act, Hangs):
            self._over.wait(act.seconds)
        request.close_connection = not isinstance(act, Says | Forwards)


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
            request.send_header(name, value)
    request.send_header("content-length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def nobody() -> str:
    """A URL on loopback where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
