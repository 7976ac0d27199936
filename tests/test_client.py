"""The Python client: typed answers and errors, attempts that are repeated until one is answered, events that are stored once."""

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import uvicorn

from seminar.artifacts import Artifact, Store
from seminar.client import api
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.http import AsyncClient, Client
from seminar.client.retries import Retries
from tests.served_world import World, open_service

LATER_MS = 1_700_000_000_000
TOKEN = "a token of 21 letters"
QUICK = Retries(attempts=4, first_s=0.01, longest_s=0.05)
REQUEST = api.ScoreRequest(user_id="u08", targets=[api.Target(item_id="i01")], time_ms=LATER_MS)


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def url(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service on a real socket, with a token."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "token").write_text(TOKEN)
    with open_service(world, folder / "history", token_file=str(folder / "token")) as opened:
        server = uvicorn.Server(uvicorn.Config(opened.client.app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


class Flaky:
    """A server that fails as told before it answers, and remembers what it was sent."""

    def __init__(self, *failures: Any) -> None:
        self.failures, self.seen = list(failures), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append((self.headers["x-request-id"], json.loads(body)))
                failure = outer.failures.pop(0) if outer.failures else None
                if failure == "lost":
                    self.close_connection = True
                    return
                events = {"user_id": "u", "accepted": 1, "duplicates": 0, "history_length": 1, "unknown_items": 0}
                told = {**events, "bundle_version": "v"} if failure is None else {"errors": []}
                content = b"<html>bad gateway" if failure == 502 else json.dumps(told).encode()
                self.send_response(failure or 200)
                self.send_header("content-length", str(len(content)))
                if failure == 503:
                    self.send_header("retry-after", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Flaky":
        threading.Thread(target=self.server.serve_forever).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


EVENTS = api.EventsRequest(user_id="u", events=[api.EventIn(item_id="i", time_ms=LATER_MS)])


def test_answers_are_typed_and_refusals_are_the_services_words(url: str) -> None:
    with Client(url, TOKEN) as client:
        assert client.ready()
        assert 0 < client.score(REQUEST).scores[0] < 1
        assert client.score_batch(api.BatchRequest(requests=[REQUEST] * 2)).results[1].status == 200
        assert client.recommend(api.RecommendRequest(user_id="u08", n=3)).items
        assert client.explain(api.ExplainRequest(user_id="u08", target=REQUEST.targets[0])).kept
        assert client.append(api.EventsRequest(user_id="a/b ü", events=EVENTS.events)).accepted == 1
        assert client.history("a/b ü").behaviours[0].item_id == "i"
        assert client.users("u0", limit=2).users[1].user_id == "u01"
        assert client.items("never").items[0].item_id == "i-untouched"
        assert client.queries("tea").queries
        assert client.bundles().bundles
        assert client.bundle().version
        with pytest.raises(ServiceError) as refused:
            client.score(api.ScoreRequest(user_id="u08", targets=[api.Target(item_id="nothing")]))
        assert (refused.value.status, refused.value.problems[0].what) == (422, "targets[0].item_id")
        assert refused.value.request_id
        with pytest.raises(ServiceError) as unknown:
            client.history("nobody at all")
        assert unknown.value.status == 404
    with Client(url, "another token of letters") as stranger, pytest.raises(ServiceError) as refused:
        stranger.score(REQUEST)
    assert refused.value.status == 401


def test_asyncio_client_gives_the_same(url: str) -> None:
    async def ask() -> list[api.ScoreResponse]:
        async with AsyncClient(url, TOKEN) as client:
            return await asyncio.gather(*(client.score(REQUEST) for _ in range(5)))

    with Client(url, TOKEN) as client:
        assert {told.scores[0] for told in asyncio.run(ask())} == {client.score(REQUEST).scores[0]}


@pytest.mark.parametrize("asyncio_too", [False, True])
def test_failed_attempts_are_repeated_and_events_are_named_once(asyncio_too: bool) -> None:
    async def ask(url: str) -> api.EventsResponse:
        async with AsyncClient(url, retries=QUICK) as client:
            return await client.append(EVENTS)

    with Flaky(503, "lost", 502) as flaky:
        if asyncio_too:
            told = asyncio.run(ask(flaky.url))
        else:
            with Client(flaky.url, retries=QUICK) as client:
                told = client.append(EVENTS)
    assert told.accepted == 1
    assert len(flaky.seen) == 4
    (request_id,) = {request_id for request_id, _ in flaky.seen}
    (event_id,) = {body["events"][0]["event_id"] for _, body in flaky.seen}
    assert len(request_id) == len(event_id) == 32


def test_refusals_are_not_repeated_and_attempts_end() -> None:
    with Flaky(422) as flaky, Client(flaky.url, retries=QUICK) as client:
        with pytest.raises(ServiceError):
            client.append(EVENTS)
        assert len(flaky.seen) == 1
    with Flaky(*[502] * 9) as flaky, Client(flaky.url, retries=QUICK) as client:
        with pytest.raises(ServiceError, match="bad gateway"):
            client.append(EVENTS)
        assert len(flaky.seen) == 4
    with Client("http://127.0.0.1:9", retries=QUICK) as client:
        with pytest.raises(Unreachable, match="expected an answer"):
            client.bundle()
        assert not client.ready()


def test_waits_grow_are_random_and_honour_the_service() -> None:
    retries, draw = Retries(first_s=1.0, longest_s=6.0), random.Random(3)
    waits = [[retries.wait_s(failed, None, draw) for _ in range(200)] for failed in (1, 2, 3, 9)]
    for drawn, most in zip(waits, (1, 2, 4, 6), strict=True):
        assert most / 2 <= min(drawn) < max(drawn) <= most
        assert len(set(drawn)) == 200
    assert retries.wait_s(1, "3", draw) == 3
    assert retries.wait_s(1, "900", draw) == 6
    assert retries.wait_s(1, "Wed, 21 Oct", draw) <= 1
