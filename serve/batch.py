"""POST /v1/score:batch: many score requests in one, each answered or refused by itself, all by one bundle."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from seminar.client import api
from seminar.errors import SeminarError
from serve.refusals import Refusal, refusal_of, refusal_of_body

AT_ONCE = 4
"""Requests of one batch in work together, so that a batch does not starve everybody else."""


@dataclass(frozen=True)
class Malformed:
    """A request of a batch that is none, and why."""

    refusal: Refusal


def _or_malformed(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        return Malformed(refusal_of_body(error.errors(include_url=False)))


class BatchRequest(api.BatchRequest):
    """As clients know it, but a bad request in it stands for itself alone."""

    requests: Annotated[list[Annotated[api.ScoreRequest, WrapValidator(_or_malformed)]], Field(min_length=1, max_length=100)]


async def each_alone(
    requests: list[api.ScoreRequest], score: Callable[[api.ScoreRequest], Awaitable[api.ScoreResponse]]
) -> list[api.BatchResult]:
    """Results in the order of the requests."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(request: api.ScoreRequest | Malformed) -> api.BatchResult:
        if isinstance(request, Malformed):
            return _refused(request.refusal)
        async with room:
            try:
                return api.BatchResult(status=200, response=await score(request))
            except SeminarError as error:
                return _refused(refusal_of(error))

    return await asyncio.gather(*map(one, requests))


def _refused(refusal: Refusal) -> api.BatchResult:
    return api.BatchResult(status=refusal.status, error=refusal.response())
