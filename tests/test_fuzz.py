"""Requests drawn from the OpenAPI document, valid and not, on the application in this process: no bug, and refusals that say why.

`python -m benchmarks.serve_fuzz` sends many more, and nastier ones, to a served application.
"""

import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from benchmarks.hostile import MAX_BENT, bent
from seminar.artifacts import Artifact, Store
from seminar.client import api
from tests.served_world import World, open_service

EXAMPLES = 12
QUICK = settings(
    max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
"""Requests a route and mode; 20 routes, two modes."""


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def operations(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    with open_service(world, tmp_path_factory.mktemp("fuzz"), max_targets=50, max_events=50) as opened:
        document = schemathesis.openapi.from_asgi("/openapi.json", opened.client.app)
        yield [found.ok() for found in document.get_all_operations()]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_drawn_request_is_answered_or_told_why_not(operations: list[Any], mode: GenerationMode) -> None:
    statuses: Counter[int] = Counter()
    for operation in operations:

        @seed(1)
        @QUICK
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            answer = case.call()
            statuses[answer.status_code] += 1
            require_told(answer.status_code, answer.content)
            assert "x-request-id" in answer.headers

        with contextlib.suppress(Unsatisfiable):
            ask()
    assert statuses.total() > 100
    assert max(statuses) < 500
    assert statuses[200]


def test_hostile_bodies_are_large_but_not_larger_than_this_machine() -> None:
    """Lists in lists were both repeated once, and the generator took all memory."""
    body = {"requests": [{"user_id": "u", "targets": [{"item_id": "i"}]}]}
    sizes = [len(json.dumps(bent(random.Random(number), body))) for number in range(600)]
    assert max(sizes) <= MAX_BENT + 1000
    assert max(sizes) > 10**6


def require_told(status: int, content: bytes) -> None:
    """A bug in none of the answers; every refusal with what, got, expected and fix."""
    assert status < 500, content
    if status >= 400:
        told = api.ErrorResponse.model_validate_json(content)
        assert told.errors
        assert all(problem.what and problem.got and problem.expected and problem.fix for problem in told.errors), told
