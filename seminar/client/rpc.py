"""gRPC client of the hot path: `pip install 'seminar[client]'`. A channel may be shared between threads.

with RPCClient("127.0.0.1:9000", token=...) as client:
    scores = client.score("1738", ["1082185", "995242"]).scores
"""

import random
import time
import uuid
from collections.abc import Sequence
from itertools import count
from types import TracebackType

import grpc
from pydantic import ValidationError

from seminar.client import api
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.retries import Patience
from seminar.client.scoring_pb2 import ScoreRequest, ScoreResponse, Task
from seminar.client.scoring_pb2_grpc import ScoringStub

_TASKS = {None: Task.AUTOMATIC, "ctr": Task.CTR, "psr": Task.PSR}
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
}
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)


class RPCClient:
    """Scores of catalogue items; ServiceError for a refusal, Unreachable where nothing answers before the deadline.

    application: of Serve, where it runs several.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        patience: Patience | None = None,
        application: str = "seminar",
    ) -> None:
        self.address, self._patience = address, patience or Patience()
        self._metadata = [("application", application), *([] if token is None else [("authorization", f"Bearer {token}")])]
        self._channel = grpc.insecure_channel(address)
        self._stub = ScoringStub(self._channel)

    def __enter__(self) -> "RPCClient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def score(
        self,
        user_id: str,
        item_ids: Sequence[str],
        *,
        query_id: str | None = None,
        query: str | None = None,
        task: api.Task | None = None,
        time_ms: int | None = None,
    ) -> ScoreResponse:
        """One probability an item, in their order. query_id, query: at most one of them, of all items."""
        request = ScoreRequest(user_id=user_id, item_ids=item_ids, task=_TASKS[task], time_ms=time_ms or 0)
        if query_id is not None:
            request.query_id = query_id
        elif query is not None:
            request.query = query
        request_id = uuid.uuid4().hex
        metadata, deadline = [*self._metadata, ("x-request-id", request_id)], time.monotonic() + self._patience.deadline_s
        for attempts in count(1):
            timeout_s = min(self._patience.timeout_s, max(deadline - time.monotonic(), 0.001))
            try:
                return self._stub.Score(request, timeout=timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                # Every error of a call is a Call too.
                code, details = error.code(), error.details() or ""  # pyrefly: ignore
                wait_s = self._wait_s(attempts)
                if code not in _AGAIN or time.monotonic() + wait_s >= deadline:
                    raise self._error(code, details, attempts, request_id) from error
            time.sleep(wait_s)
        raise AssertionError("attempts are without end")

    def _wait_s(self, attempts: int) -> float:
        """As over HTTP: grows, at random."""
        patience = self._patience
        return random.random() * min(patience.most_wait_s, patience.first_wait_s * 2.0 ** min(attempts - 1, 60))

    def _error(self, code: grpc.StatusCode, details: str, attempts: int, request_id: str) -> ServiceError | Unreachable:
        status = _STATUS.get(code, 500)
        try:
            return ServiceError(status, api.ErrorResponse.model_validate_json(details).errors, request_id)
        except ValidationError:
            pass
        said = f"{code.name}: {details}"[:300]
        if code in _AGAIN:
            return Unreachable(f"gRPC {self.address}", said, attempts, request_id)
        problem = api.Problem(what="answer", got=said, expected="scores", fix="see the service's log")
        return ServiceError(status, [problem], request_id)
