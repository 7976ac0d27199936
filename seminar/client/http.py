"""Typed clients of the service over HTTP, blocking and async: `pip install seminar[client]`.

    with Client("http://127.0.0.1:8000") as client:
        told = client.score(api.ScoreRequest(user_id="1738", targets=[api.Target(item_id="1082185")]))

Everything may be sent again (`retries.py`): scores and reads change nothing, and events have ids that the store knows again. An
answer to events that had to be sent twice may therefore count them as duplicates.
"""

import asyncio
import os
import ssl
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from seminar.client import api, calls
from seminar.client.calls import Call, Reply
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.retries import Addresses, Lost, Patience, Send, Wait, exchange, lost
from seminar.errors import ConfigError, explain

T = TypeVar("T", bound=BaseModel)
TOKEN = "SEMINAR_TOKEN"


class Client:
    """Blocking; safe to share between threads.

    urls: one or several base URLs of the same service; the next one is taken when one cannot be reached or does not answer.
    token: bearer token, else that of the environment's SEMINAR_TOKEN, else none. verify: False or a context, for https.
    Calls raise ServiceError where the service refuses, Unreachable where nobody answers.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        patience: Patience | None = None,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        self._addresses, self._patience = Addresses(urls), patience or Patience()
        self._http = httpx.Client(headers=_bearer(token), verify=verify)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def score(self, request: api.ScoreRequest) -> api.ScoreResponse:
        """Probability of each target."""
        return self.send(calls.score(request))

    def score_batch(self, request: api.BatchRequest) -> api.BatchResponse:
        """Each request answered or refused by itself."""
        return self.send(calls.score_batch(request))

    def recommend(self, request: api.RecommendRequest) -> api.RecommendResponse:
        """Items out of the whole catalogue."""
        return self.send(calls.recommend(request))

    def explain(self, request: api.ExplainRequest) -> api.ExplainResponse:
        """Everything that made one score."""
        return self.send(calls.explain(request))

    def append(self, request: api.EventsRequest) -> api.EventsResponse:
        """Store events; each is stored once, however often it had to be sent."""
        return self.send(calls.append(request))

    def history(self, user_id: str, limit: int = 100) -> api.HistoryResponse:
        """A user's newest behaviours, newest last."""
        return self.send(calls.history(user_id, limit))

    def users(self, prefix: str = "", order: api.UserOrder = "id", limit: int = 50) -> api.UsersResponse:
        """Users whose id begins with `prefix`."""
        return self.send(calls.users(prefix, order, limit))

    def items(self, text: str = "", limit: int = 20) -> api.ItemsResponse:
        """Items of the catalogue whose text has every word of `text`."""
        return self.send(calls.items(text, limit))

    def queries(self, text: str = "", limit: int = 20) -> api.QueriesResponse:
        """Queries of the catalogue whose text has every word of `text`."""
        return self.send(calls.queries(text, limit))

    def bundle(self) -> api.BundleResponse:
        """Versions of everything that makes a score, on every replica."""
        return self.send(calls.bundle())

    def bundles(self) -> api.BundlesResponse:
        """Published bundles."""
        return self.send(calls.bundles())

    def healthy(self) -> bool:
        """Whether any address has a bundle loaded; asked once of each, without waiting."""
        try:
            self.send(calls.ready())
        except (ServiceError, Unreachable):
            return False
        return True

    def send(self, call: Call[T]) -> T:
        """The answer to one of `calls`; the methods above in general."""
        conversation = exchange(call, self._addresses, self._patience)
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = conversation.send(None)
                else:
                    step = conversation.send(self._attempt(call, step))
        except StopIteration as done:
            return done.value

    def _attempt(self, call: Call[T], step: Send) -> Reply | Lost:
        ends, pieces = time.monotonic() + step.timeout_s, []
        try:
            with self._http.stream(**_arguments(call, step, self._patience)) as response:
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    # httpx's own limit is for each piece, so an answer in drops would never meet it.
                    if time.monotonic() > ends:
                        raise httpx.ReadTimeout("the answer was not complete in time")
            return Reply(response.status_code, response.headers, b"".join(pieces))
        except httpx.RequestError as error:
            return lost(error)


class AsyncClient:
    """As `Client`, with coroutines."""

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        patience: Patience | None = None,
        verify: bool | ssl.SSLContext = True,
    ) -> None:
        self._addresses, self._patience = Addresses(urls), patience or Patience()
        self._http = httpx.AsyncClient(headers=_bearer(token), verify=verify)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def score(self, request: api.ScoreRequest) -> api.ScoreResponse:
        """Probability of each target."""
        return await self.send(calls.score(request))

    async def score_batch(self, request: api.BatchRequest) -> api.BatchResponse:
        """Each request answered or refused by itself."""
        return await self.send(calls.score_batch(request))

    async def recommend(self, request: api.RecommendRequest) -> api.RecommendResponse:
        """Items out of the whole catalogue."""
        return await self.send(calls.recommend(request))

    async def explain(self, request: api.ExplainRequest) -> api.ExplainResponse:
        """Everything that made one score."""
        return await self.send(calls.explain(request))

    async def append(self, request: api.EventsRequest) -> api.EventsResponse:
        """Store events; each is stored once, however often it had to be sent."""
        return await self.send(calls.append(request))

    async def history(self, user_id: str, limit: int = 100) -> api.HistoryResponse:
        """A user's newest behaviours, newest last."""
        return await self.send(calls.history(user_id, limit))

    async def users(self, prefix: str = "", order: api.UserOrder = "id", limit: int = 50) -> api.UsersResponse:
        """Users whose id begins with `prefix`."""
        return await self.send(calls.users(prefix, order, limit))

    async def items(self, text: str = "", limit: int = 20) -> api.ItemsResponse:
        """Items of the catalogue whose text has every word of `text`."""
        return await self.send(calls.items(text, limit))

    async def queries(self, text: str = "", limit: int = 20) -> api.QueriesResponse:
        """Queries of the catalogue whose text has every word of `text`."""
        return await self.send(calls.queries(text, limit))

    async def bundle(self) -> api.BundleResponse:
        """Versions of everything that makes a score, on every replica."""
        return await self.send(calls.bundle())

    async def bundles(self) -> api.BundlesResponse:
        """Published bundles."""
        return await self.send(calls.bundles())

    async def healthy(self) -> bool:
        """Whether any address has a bundle loaded; asked once of each, without waiting."""
        try:
            await self.send(calls.ready())
        except (ServiceError, Unreachable):
            return False
        return True

    async def send(self, call: Call[T]) -> T:
        """The answer to one of `calls`; the methods above in general."""
        conversation = exchange(call, self._addresses, self._patience)
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = conversation.send(None)
                else:
                    step = conversation.send(await self._attempt(call, step))
        except StopIteration as done:
            return done.value

    async def _attempt(self, call: Call[T], step: Send) -> Reply | Lost:
        try:
            async with asyncio.timeout(step.timeout_s):
                response = await self._http.request(**_arguments(call, step, self._patience))
            return Reply(response.status_code, response.headers, response.content)
        except (httpx.RequestError, TimeoutError) as error:
            return lost(error)


def _arguments(call: Call[Any], step: Send, patience: Patience) -> dict[str, Any]:
    """What httpx is asked for."""
    return {
        "method": call.method,
        "url": step.url + call.path,
        "content": call.body,
        "params": call.params or None,
        "headers": call.headers(),
        "timeout": httpx.Timeout(step.timeout_s, connect=min(patience.connect_s, step.timeout_s)),
    }


def _bearer(token: str | None) -> dict[str, str]:
    token = token or os.environ.get(TOKEN)
    if token is None or not token.strip():
        return {}
    if not (token.strip().isascii() and token.strip().isprintable()):
        raise ConfigError(explain("token", got="other characters", expected="ASCII", fix="use the token of serve.token_file"))
    return {"authorization": f"Bearer {token.strip()}"}
