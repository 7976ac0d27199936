"""Keeps a `Record` of every request, named by its x-request-id, and reports both ends to the observer; for HTTP a middleware."""

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.observe import CURRENT, Observer, Record

HEADER = b"x-request-id"
SCOPE_KEY = "seminar.request_id"
_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@contextmanager
def watching(observer: Observer, record: Record) -> Iterator[None]:
    """A request from its first to its last; an error that leaves it is noted in its record."""
    began, token = time.perf_counter(), CURRENT.set(record)
    observer.began()
    try:
        yield
    except BaseException as error:
        record.error = error
        raise
    finally:
        record.total_ms = 1000 * (time.perf_counter() - began)
        CURRENT.reset(token)
        observer.ended(record)


class Watched:
    """Outermost of the application's own layers. observer: found when a request comes, as the service is."""

    def __init__(self, app: ASGIApp, observer: Callable[[], Observer]) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(request_id_of(scope["headers"]), scope["method"])
        # For the answer to a bug, which is written outside this layer.
        scope[SCOPE_KEY] = record.request_id

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != HEADER]
                message["headers"] = [*headers, (HEADER, record.request_id.encode())]
            await send(message)

        with watching(self._observer(), record):
            try:
                await self._app(scope, receive, answer)
            finally:
                # The route is known once one has matched; what matches none is one label, whatever its path.
                record.route = getattr(scope.get("route"), "path", "")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-Id, or Serve's; a new one where there is none, or one that no log should hold."""
    given = next((value for name, value in headers if name == HEADER), b"")
    return given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
