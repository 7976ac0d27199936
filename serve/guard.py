"""What stands before every route: limits of a body that no field of a request can have."""

from starlette.types import ASGIApp, Receive, Scope, Send

from seminar.client import api
from serve.refusals import Refusal, error_answer

MAX_BODY_BYTES = 1 << 24
"""16 MiB, the largest body that is read: 10,000 events of 1.6 kB each."""


class BodyLimit:
    """Refuses a body whose Content-Length is over MAX_BODY_BYTES before a byte of it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            got, expected = f"{int(length)} bytes", f"at most {MAX_BODY_BYTES}"
            problem = api.Problem(what="body", got=got, expected=expected, fix="split it over several requests")
            await error_answer(Refusal(413, [problem]))(scope, receive, send)
        else:
            await self._app(scope, receive, send)
