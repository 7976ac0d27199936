"""The Python client: every route with its models, and what it does when the service or the way to it misbehaves."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from seminar.artifacts import Artifact, Store
from seminar.client import api, calls
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.http import AsyncClient, Client
from seminar.client.retries import Addresses, Lost, Patience, Send, Wait, exchange, retry_after_s
from seminar.errors import ConfigError
from tests.misbehaving import Act, Closes, Drips, Forwards, Hangs, Misbehaving, Says, Swallows, Truncates, nobody
from tests.served_world import Service, World, open_service, over_http

NOW_MS = 1_700_000_000_000
SCORE = api.ScoreRequest(user_id="u08", targets=[api.Target(item_id="i01"), api.Target(item_id="i02", query="tea")])
BUSY = Says(503, headers={"retry-after": "1"})
QUICK = Patience(first_wait_s=0.02)
HASTY = Patience(timeout_s=1, first_wait_s=0.02)
TOKEN = "a token of 21 letters"


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def service(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(world, tmp_path_factory.mktemp("client") / "history") as opened:
        yield opened


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with over_http(service) as address:
        yield address


@pytest.fixture(params=["blocking", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Either client: `call(urls, method, *arguments, patience=...)`."""

    def blocking(urls: str | list[str], method: str, *arguments: Any, **how: Any) -> Any:
        with Client(urls, **how) as client:
            return getattr(client, method)(*arguments)

    def with_async(urls: str | list[str], method: str, *arguments: Any, **how: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(urls, **how) as client:
                return await getattr(client, method)(*arguments)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else with_async


def test_importing_the_client_imports_no_torch_and_no_ray() -> None:
    code = "import sys, seminar.client.http; print([m for m in ('torch', 'ray', 'numpy', 'fastapi') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_route_is_answered_by_its_model(url: str, world: World, call: Callable[..., Any]) -> None:
    told = call(url, "score", SCORE)
    assert isinstance(told, api.ScoreResponse)
    assert len(told.scores) == 2
    batch = call(url, "score_batch", api.BatchRequest(requests=[SCORE, SCORE]))
    assert [result.status for result in batch.results] == [200, 200]
    assert len(call(url, "recommend", api.RecommendRequest(user_id="u08", n=3)).items) == 3
    assert call(url, "explain", api.ExplainRequest(user_id="u08", target=api.Target(item_id="i01"))).kept
    assert call(url, "users", "u0", "longest", 3).users[0].user_id.startswith("u0")
    assert call(url, "items", "tea", 4).items
    assert [query.query_id for query in call(url, "queries", "tea").queries] == ["q-tea"]
    assert call(url, "bundle").version == call(url, "bundles").current == world.bundles[0].version
    assert call(url, "history", "u08", 2).length > 2
    assert call(url, "healthy") is True


@pytest.mark.parametrize("user", ["a/b", "..", ".", "ä ö", "?x=1#y", "%2e%2e", "100 %"])
def test_any_user_id_is_written_and_read_back(url: str, user: str, call: Callable[..., Any]) -> None:
    events = api.EventsRequest(user_id=user, events=[api.EventIn(item_id="i01", time_ms=NOW_MS)])
    call(url, "append", events)
    assert call(url, "history", user).user_id == user


def test_refused_request_raises_at_once_with_the_services_problems(url: str, call: Callable[..., Any]) -> None:
    with Misbehaving([Forwards()], url) as between:
        wrong = api.ScoreRequest(user_id="u08", targets=[api.Target(item_id="no such item")])
        with pytest.raises(ServiceError, match=r"targets\[0\].item_id: got 'no such item'") as caught:
            call(between.url, "score", wrong)
        assert (caught.value.status, len(caught.value.problems), len(between.heads)) == (422, 1, 1)
        assert caught.value.request_id == between.heads[0]["x-request-id"]
        with pytest.raises(ServiceError) as caught:
            call(between.url, "history", "nobody knows")
        assert caught.value.status == 404


def test_wrong_arguments_never_leave() -> None:
    with pytest.raises(ValidationError):
        api.ScoreRequest(user_id="u", targets=[])
    for urls in ([], "127.0.0.1:8000", "ftp://x", ["http://a", "http://"]):
        with pytest.raises(ConfigError):
            Client(urls)
    with pytest.raises(ConfigError):
        Client("http://a", token="ä" * 20)


@pytest.mark.parametrize(
    "act",
    [Closes(), Truncates(), Hangs(), Drips(), Says(502), Says(503), Says(504), Says(408), Says(500)],
    ids=lambda act: f"{type(act).__name__}{getattr(act, 'status', '')}",
)
def test_request_that_nobody_answered_is_sent_again(url: str, act: Act, call: Callable[..., Any]) -> None:
    with Misbehaving([act, act, Forwards()], url) as between:
        patience = HASTY if isinstance(act, Hangs | Drips) else QUICK
        assert len(call(between.url, "score", SCORE, patience=patience).scores) == 2
        assert len(between.heads) >= 3
        assert len({head["x-request-id"] for head in between.heads}) == 1
        assert {head["x-session-id"] for head in between.heads} == {"u08"}
        assert len(set(between.bodies)) == 1


def test_bug_of_the_service_is_told_and_not_sent_again(call: Callable[..., Any]) -> None:
    problem = {"what": "POST /v1/score", "got": "KeyError", "expected": "an answer", "fix": "report it"}
    with Misbehaving([Says(500, json.dumps({"errors": [problem]}).encode())]) as between:
        with pytest.raises(ServiceError, match="KeyError"):
            call(between.url, "score", SCORE, patience=QUICK)
        assert len(between.heads) == 1


def test_retry_after_is_waited_for(url: str, call: Callable[..., Any]) -> None:
    with Misbehaving([BUSY, Forwards()], url) as between:
        call(between.url, "score", SCORE, patience=QUICK)
        assert between.times[1] - between.times[0] >= 1


def test_retry_after_is_read_as_seconds_or_date() -> None:
    assert retry_after_s("7") == 7
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("Tue, 01 Jan 2999 00:00:00 GMT") > 10**9
    assert [retry_after_s(header) for header in ("", "soon", "-5", "1.5", "²")] == [0] * 5


@pytest.mark.parametrize("act", [Closes(), Hangs(), Drips(), Says(503)], ids=lambda act: type(act).__name__)
def test_no_call_outlives_its_deadline(act: Act, call: Callable[..., Any]) -> None:
    patience = Patience(timeout_s=0.5, deadline_s=1.2, first_wait_s=0.05, most_wait_s=0.1)
    with Misbehaving([act]) as between:
        began = time.monotonic()
        with pytest.raises((Unreachable, ServiceError)) as caught:
            call(between.url, "score", SCORE, patience=patience)
        assert time.monotonic() - began < 4
        assert isinstance(caught.value, ServiceError) == isinstance(act, Says)
        assert len(between.heads) > 1


def test_wait_that_would_pass_the_deadline_is_not_begun(call: Callable[..., Any]) -> None:
    with Misbehaving([Says(503, headers={"retry-after": "60"})]) as between:
        began = time.monotonic()
        with pytest.raises(ServiceError, match="status 503"):
            call(between.url, "score", SCORE, patience=QUICK)
        assert time.monotonic() - began < 10
        assert len(between.heads) == 1


def test_next_address_is_taken_without_waiting_when_one_cannot_be_reached(url: str, call: Callable[..., Any]) -> None:
    slow = Patience(first_wait_s=60, most_wait_s=60, deadline_s=300)
    began = time.monotonic()
    assert call([nobody(), nobody(), url], "score", SCORE, patience=slow).scores
    assert time.monotonic() - began < 30


def test_address_that_went_away_is_left_for_good(url: str) -> None:
    with Misbehaving([Forwards(), Closes()], url) as first, Misbehaving([Forwards()], url) as second:
        with Client([first.url, second.url], patience=QUICK) as client:
            for _ in range(4):
                client.score(SCORE)
        assert (len(first.heads), len(second.heads)) == (2, 3)


def test_nobody_anywhere_is_told_with_address_and_attempts(call: Callable[..., Any]) -> None:
    gone = nobody()
    patience = Patience(deadline_s=0.5, first_wait_s=0.05)
    with pytest.raises(Unreachable, match=f"POST {gone}/v1/score: got no connection") as caught:
        call(gone, "score", SCORE, patience=patience)
    assert caught.value.attempts > 1


def test_health_is_asked_once_of_each_address(url: str, call: Callable[..., Any]) -> None:
    busy = Says(503, headers={"retry-after": "60"})
    with Misbehaving([busy]) as first, Misbehaving([busy]) as second:
        began = time.monotonic()
        assert call([first.url, nobody(), second.url], "healthy") is False
        assert time.monotonic() - began < 10
        assert (len(first.heads), len(second.heads)) == (1, 1)
        assert call([first.url, url], "healthy") is True


def test_events_whose_answer_got_lost_are_stored_once(url: str, service: Service, call: Callable[..., Any]) -> None:
    user = f"lost {call.__name__}"
    events = [api.EventIn(item_id="i01", time_ms=NOW_MS), api.EventIn(item_id="i01", time_ms=NOW_MS)]
    events.append(api.EventIn(item_id="i02", time_ms=NOW_MS, event_id="mine"))
    with Misbehaving([Swallows(), Swallows(), Closes(), Forwards()], url) as between:
        told = call(between.url, "append", api.EventsRequest(user_id=user, events=events), patience=QUICK)
    assert (told.accepted, told.duplicates, told.history_length) == (0, 3, 3)
    assert len(service.engine.store.read(user)) == 3
    sent = json.loads(between.bodies[0])["events"]
    assert sent[2]["event_id"] == "mine"
    assert len({event["event_id"] for event in sent}) == 3


def test_many_threads_behind_a_bad_way_lose_and_double_nothing(url: str, service: Service) -> None:
    acts = [Closes(), Swallows(), Forwards(), Says(502), Forwards(), Truncates()] * 10
    per_thread, threads = 8, 4
    with Misbehaving([*acts, Forwards()], url) as between, Client([between.url, nobody()], patience=QUICK) as client:

        def run(number: int) -> None:
            for turn in range(per_thread):
                event = api.EventIn(item_id="i03", time_ms=NOW_MS + turn)
                client.append(api.EventsRequest(user_id=f"thread {number}", events=[event]))

        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(between.heads) > per_thread * threads
    assert [len(service.engine.store.read(f"thread {number}")) for number in range(threads)] == [per_thread] * threads


def test_tasks_of_one_loop_share_a_client(url: str) -> None:
    async def ask() -> list[api.ScoreResponse]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.score(SCORE) for _ in range(5)))

    with Client(url) as client:
        assert {tuple(told.scores) for told in asyncio.run(ask())} == {tuple(client.score(SCORE).scores)}


def test_waits_double_up_to_the_most_and_are_drawn_from_nothing_up() -> None:
    patience = Patience(first_wait_s=1, most_wait_s=6, deadline_s=10**6)
    for share in (0.0, 0.5, 1.0):
        conversation = exchange(calls.score(SCORE), Addresses("http://a"), patience, lambda share=share: share, lambda: 0.0)
        step, waits = next(conversation), []
        while len(waits) < 5:
            assert isinstance(step, Send)
            step = conversation.send(Lost("closed", reached=True))
            if share:
                assert isinstance(step, Wait)
                waits.append(step.seconds)
                step = conversation.send(None)
            else:
                waits.append(0.0)
        assert waits == [share * most for most in (1, 2, 4, 6, 6)]


def test_answer_of_another_service_is_no_answer(call: Callable[..., Any]) -> None:
    with (
        Misbehaving([Says(200, b'{"status": "ok"}')]) as between,
        pytest.raises(ServiceError, match="expected ScoreResponse"),
    ):
        call(between.url, "score", SCORE)


def test_token_comes_from_argument_or_environment(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any]
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with open_service(world, tmp_path / "history", token_file=str(tmp_path / "token")) as guarded, over_http(guarded) as url:
        assert call(url, "healthy") is True
        with pytest.raises(ServiceError, match="authorization"):
            call(url, "score", SCORE)
        assert call(url, "score", SCORE, token=TOKEN).scores
        monkeypatch.setenv("SEMINAR_TOKEN", TOKEN)
        assert call(url, "score", SCORE).scores


def test_every_route_of_v1_has_a_method(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    made = [
        calls.score(SCORE),
        calls.score_batch(api.BatchRequest(requests=[SCORE])),
        calls.recommend(api.RecommendRequest(user_id="u")),
        calls.explain(api.ExplainRequest(user_id="u", target=api.Target(item_id="i"))),
        calls.append(api.EventsRequest(user_id="u", events=[api.EventIn(item_id="i", time_ms=NOW_MS)])),
        calls.history("{user_id}", 1),
        calls.users("", "id", 1),
        calls.items("", 1),
        calls.queries("", 1),
        calls.bundle(),
        calls.bundles(),
        calls.ready(),
    ]
    known = {path for path in document["paths"] if path.startswith("/v1/")} - {"/v1/health/live"}
    assert {call.path.replace("%7Buser_id%7D", "{user_id}") for call in made} == known
    for one in made:
        path = document["paths"][one.path.replace("%7Buser_id%7D", "{user_id}")][one.method.lower()]
        schema = path["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert schema.rpartition("/")[2] == one.answer.__name__
