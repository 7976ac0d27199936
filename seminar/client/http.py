"""Typed HTTP clients of the service, plain and asyncio: `pip install 'seminar[client]'`.

    with Client("http://127.0.0.1:8000", token=...) as client:
        client.score(api.ScoreRequest(user_id="1738", targets=[api.Target(item_id="1082185")])).scores

Every call is safe to repeat (events get ids), so a 503 or a lost connection is tried again with growing, random waits. A client
may be shared between threads, or between tasks of one event loop.
"""

import asyncio
import random
import time
import uuid
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from seminar.client import api, calls
from seminar.client.calls import Call
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.retries import AGAIN, Retries
from seminar.errors import explain

A = TypeVar("A", bound=BaseModel)


class _Base:
    def __init__(self, url: str, token: str | None = None, timeout_s: float = 10.0, retries: Retries | None = None) -> None:
        """url: of the service. token: its bearer token. timeout_s: of one attempt."""
        self.url, self.retries = url.rstrip("/"), retries or Retries()
        self._draw = random.Random()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._options: dict[str, Any] = {"base_url": self.url, "headers": headers, "timeout": timeout_s}

    def _request(self, call: Call[A], request_id: str) -> dict[str, Any]:
        headers = {"X-Request-Id": request_id}
        content = None
        if call.body is not None:
            content, headers["Content-Type"] = call.body.model_dump_json(exclude_unset=True), "application/json"
        return {"method": call.method, "url": call.path, "params": call.params, "content": content, "headers": headers}

    def _answer(self, call: Call[A], answer: httpx.Response) -> A:
        if answer.is_success:
            return call.answer.model_validate_json(answer.content)
        raise calls.refused(answer.status_code, answer.content, answer.headers.get("x-request-id"))

    def _wait_s(self, failed: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next attempt; None where there is none."""
        lost = isinstance(outcome, httpx.TransportError)
        if failed >= self.retries.attempts or not (lost or outcome.status_code in AGAIN):
            return None
        return self.retries.wait_s(failed, None if lost else outcome.headers.get("retry-after"), self._draw)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        got = f"{type(error).__name__}: {error}"
        return Unreachable(explain(self.url, got=got, expected="an answer", fix="check the address and that the service runs"))


class Client(_Base):
    """One call, one answer; ServiceError for a refusal, Unreachable where there is no answer."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 10.0, retries: Retries | None = None) -> None:
        super().__init__(url, token, timeout_s, retries)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def send(self, call: Call[A], request_id: str | None = None) -> A:
        """request_id: how the service's log names the request; every attempt carries the same."""
        request, failed = self._request(call, request_id or uuid.uuid4().hex), 0
        while True:
            try:
                outcome = self._http.request(**request)
            except httpx.TransportError as error:
                outcome = error
            failed += 1
            wait_s = self._wait_s(failed, outcome)
            if wait_s is not None:
                time.sleep(wait_s)
            elif isinstance(outcome, httpx.TransportError):
                raise self._unreachable(outcome) from outcome
            else:
                return self._answer(call, outcome)

    def score(self, request: api.ScoreRequest) -> api.ScoreResponse:
        return self.send(calls.score(request))

    def score_batch(self, request: api.BatchRequest) -> api.BatchResponse:
        return self.send(calls.score_batch(request))

    def recommend(self, request: api.RecommendRequest) -> api.RecommendResponse:
        return self.send(calls.recommend(request))

    def explain(self, request: api.ExplainRequest) -> api.ExplainResponse:
        return self.send(calls.explain(request))

    def append(self, request: api.EventsRequest) -> api.EventsResponse:
        return self.send(calls.append(request))

    def history(self, user_id: str, limit: int = 100) -> api.HistoryResponse:
        return self.send(calls.history(user_id, limit))

    def users(self, prefix: str = "", limit: int = 50) -> api.UsersResponse:
        return self.send(calls.users(prefix, limit))

    def items(self, text: str = "", limit: int = 20) -> api.ItemsResponse:
        return self.send(calls.items(text, limit))

    def queries(self, text: str = "", limit: int = 20) -> api.QueriesResponse:
        return self.send(calls.queries(text, limit))

    def bundles(self) -> api.BundlesResponse:
        return self.send(calls.bundles())

    def bundle(self) -> api.BundleResponse:
        return self.send(calls.bundle())

    def ready(self) -> bool:
        """Whether the service has a bundle to answer with."""
        try:
            return self.send(calls.ready()).status == "ready"
        except (ServiceError, Unreachable):
            return False


class AsyncClient(_Base):
    """`Client` for asyncio."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 10.0, retries: Retries | None = None) -> None:
        super().__init__(url, token, timeout_s, retries)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def send(self, call: Call[A], request_id: str | None = None) -> A:
        """As `Client.send`."""
        request, failed = self._request(call, request_id or uuid.uuid4().hex), 0
        while True:
            try:
                outcome = await self._http.request(**request)
            except httpx.TransportError as error:
                outcome = error
            failed += 1
            wait_s = self._wait_s(failed, outcome)
            if wait_s is not None:
                await asyncio.sleep(wait_s)
            elif isinstance(outcome, httpx.TransportError):
                raise self._unreachable(outcome) from outcome
            else:
                return self._answer(call, outcome)

    async def score(self, request: api.ScoreRequest) -> api.ScoreResponse:
        return await self.send(calls.score(request))

    async def score_batch(self, request: api.BatchRequest) -> api.BatchResponse:
        return await self.send(calls.score_batch(request))

    async def recommend(self, request: api.RecommendRequest) -> api.RecommendResponse:
        return await self.send(calls.recommend(request))

    async def explain(self, request: api.ExplainRequest) -> api.ExplainResponse:
        return await self.send(calls.explain(request))

    async def append(self, request: api.EventsRequest) -> api.EventsResponse:
        return await self.send(calls.append(request))

    async def history(self, user_id: str, limit: int = 100) -> api.HistoryResponse:
        return await self.send(calls.history(user_id, limit))

    async def bundle(self) -> api.BundleResponse:
        return await self.send(calls.bundle())
