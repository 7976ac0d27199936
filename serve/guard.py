"""Who is answered: without the bearer token only health, the documentation and the explorer's page.

Stands before the routes, so a body of a stranger is never read. What needs no token is listed; everything else needs it.
"""

import hmac
import re
from collections.abc import Callable

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from seminar.client import api
from serve.refusals import Refusal, error_answer

OPEN = re.compile(r"/|/explorer(/.*)?|/docs|/redoc|/openapi\.json|/v1/health/(live|ready)|/v2(/.*)?")


class TokenGuard:
    """Refuses what does not carry the token. token: found when a request comes; None: everybody is answered."""

    def __init__(self, app: ASGIApp, token: Callable[[], str | None]) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not OPEN.fullmatch(get_route_path(scope)):
            problem = token_problem(self._token(), Headers(scope=scope).get("authorization"))
            if problem is not None:
                answer = error_answer(Refusal(401, [problem]), {"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def token_problem(token: str | None, authorization: str | None) -> api.Problem | None:
    """What is wrong with an Authorization header, None if nothing is. Takes as long for a near miss as for any other."""
    if token is None:
        return None
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
        return None
    got = "another token" if scheme.lower() == "bearer" else "none" if not authorization else "another scheme"
    fix = "send `Authorization: Bearer <token>` with the token of the service's token_file"
    return api.Problem(what="authorization", got=got, expected="the service's bearer token", fix=fix)
