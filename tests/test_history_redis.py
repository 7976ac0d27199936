"""The Redis store against a real server: what it refuses, and what a server that is away, hangs or is full means."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.redis_server import RedisServer
from seminar.errors import ArtifactError
from seminar.history.opening import open_histories
from seminar.history.redis_server import lease
from seminar.history.redis_store import RedisHistoryStore
from seminar.history.store import Durability, Event, HistoryFull, StoreUnavailable
from serve.options import Options
from tests.history_oracle import read_back
from tests.stores import needs_server

pytestmark = needs_server
START_MS = 1_600_000_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as running:
        yield running


def event(number: int) -> Event:
    return Event(f"i{number}", START_MS + number, event_id=f"e{number}")


def items(store: RedisHistoryStore, user: str = "u") -> list[str]:
    return [item for _, item, _, _ in read_back(store, user)]


def test_settings_choose_the_server(server: RedisServer, tmp_path: Path) -> None:
    options = Options.parse({"workdir": str(tmp_path), "history_url": server.url})
    store = options.open_history()
    assert isinstance(store, RedisHistoryStore)
    store.append("u", [event(0)])
    again = open_histories(options, tmp_path)
    assert len(again.read("u")) == 1


@pytest.mark.parametrize(
    ("setting", "value", "refused"),
    [
        ("appendfsync", "everysec", ["always"]),
        ("appendfsync", "no", ["always", "everysec"]),
        ("appendonly", "no", ["always", "everysec"]),
        ("no-appendfsync-on-rewrite", "yes", ["always", "everysec"]),
        ("maxmemory-policy", "allkeys-lru", ["always", "everysec", "server"]),
    ],
)
def test_server_that_may_lose_histories_is_refused_and_told_what_to_change(
    server: RedisServer, setting: str, value: str, refused: list[Durability]
) -> None:
    with server.client() as client:
        client.config_set(setting, value)
    kept: list[Durability] = ["always", "everysec", "server"]
    for durability in kept:
        if durability in refused:
            with pytest.raises(StoreUnavailable, match=f"got {setting} {value}, expected .*; CONFIG SET {setting}"):
                RedisHistoryStore(server.url, durability)
        else:
            RedisHistoryStore(server.url, durability).close()


def test_server_whose_settings_cannot_be_seen_is_trusted_only_if_told_so(server: RedisServer) -> None:
    with server.client() as client:
        client.acl_setuser("limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"], commands=["-config"])
    url = server.url.replace("//", "//limited:secret@")
    with pytest.raises(StoreUnavailable, match=r"allow CONFIG GET, or set serve\.history_durability") as error:
        RedisHistoryStore(url)
    assert "secret" not in str(error.value)
    RedisHistoryStore(url, "server").close()


def test_password_comes_from_the_environment(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with server.client() as client:
        client.config_set("requirepass", "secret")
    with pytest.raises(StoreUnavailable, match="Authentication required"):
        RedisHistoryStore(server.url)
    monkeypatch.setenv("SEMINAR_HISTORY_PASSWORD", "secret")
    RedisHistoryStore(server.url).close()


def test_other_format_is_refused_with_both_sides(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    RedisHistoryStore(server.url).close()
    monkeypatch.setattr("seminar.history.redis_store.FORMAT", b"2")
    with pytest.raises(ArtifactError, match="got format 1, expected format 2"):
        RedisHistoryStore(server.url)


def test_server_that_is_away_is_an_error_at_once_and_back_without_a_new_store(server: RedisServer) -> None:
    store = RedisHistoryStore(server.url)
    store.append("u", [event(0)])
    server.kill()
    began = time.perf_counter()
    for call in (lambda: store.read("u"), lambda: store.append("u", [event(1)]), lambda: store.version("u")):
        with pytest.raises(StoreUnavailable, match="retry in a moment"):
            call()
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}"):
        RedisHistoryStore(server.url)
    assert time.perf_counter() - began < 5
    server.start()
    assert store.append("u", [event(0), event(1)]).accepted == 1
    assert items(store) == ["i0", "i1"]


def test_server_that_comes_back_with_weaker_settings_is_not_written_to(server: RedisServer) -> None:
    store = RedisHistoryStore(server.url)
    store.append("u", [event(0)])
    durable = server.options
    server.kill()
    server.start("--appendonly", "yes", "--appendfsync", "everysec")
    with pytest.raises(StoreUnavailable, match="got appendfsync everysec, expected appendfsync always"):
        store.append("u", [event(1)])
    server.kill()
    server.start(*durable)
    store.append("u", [event(2)])
    assert items(store) == ["i0", "i2"]


def test_server_that_hangs_costs_a_bounded_time_and_what_it_got_is_stored_once(server: RedisServer) -> None:
    store = RedisHistoryStore(server.url, timeout_s=0.5)
    store.append("u", [event(0)])
    server.signal(signal.SIGSTOP)
    began = time.perf_counter()
    with pytest.raises(StoreUnavailable):
        store.append("u", [event(1)])
    assert time.perf_counter() - began < 5
    server.signal(signal.SIGCONT)
    store.append("u", [event(1)])
    assert items(store) == ["i0", "i1"]


def test_full_server_says_so_and_keeps_what_it_has(server: RedisServer) -> None:
    store = RedisHistoryStore(server.url)
    store.append("u", [event(0)])
    with server.client() as client:
        client.config_set("maxmemory", "1mb")
        with pytest.raises(HistoryFull, match="raise maxmemory; nothing of this request was stored"):
            store.append("u", [event(1)])
        assert items(store) == ["i0"]
        client.config_set("maxmemory", "0")
    assert store.append("u", [event(1)]).length == 2


def test_a_read_is_one_command_and_an_append_three_round_trips_at_most(server: RedisServer) -> None:
    store = RedisHistoryStore(server.url)
    store.append("u", [event(0)])
    with server.client() as client:
        client.config_resetstat()
        store.read("u")
        store.version("u")
        assert {name: stats["calls"] for name, stats in client.info("commandstats").items() if "config" not in name} == {
            "cmdstat_get": 1,
            "cmdstat_getrange": 1,
        }
        client.config_resetstat()
        store.append("u", [event(1)])
        assert client.info("commandstats")["cmdstat_eval"]["calls"] == 2
        client.config_resetstat()
        store.append("u", [Event("i0", START_MS + 9)])
        assert client.info("commandstats")["cmdstat_eval"]["calls"] == 1


def test_replicas_must_have_a_write_where_that_is_asked_for(server: RedisServer, tmp_path: Path) -> None:
    store = RedisHistoryStore(server.url, replicas=1, timeout_s=1.0)
    with pytest.raises(StoreUnavailable, match="got 0 replicas, expected 1"):
        store.append("u", [event(0)])
    with pytest.raises(StoreUnavailable, match="got 0 replicas"):
        store.append("u", [event(0)])
    options = ("--appendonly", "yes", "--appendfsync", "always", "--replicaof", "127.0.0.1", str(server.port))
    with RedisServer(tmp_path / "replica", *options) as replica:
        until = time.monotonic() + 20
        while True:
            try:
                assert store.append("u", [event(0)]).duplicates == 1
                break
            except StoreUnavailable:
                assert time.monotonic() < until
        store.append("u", [event(1)])
        with replica.client() as client:
            assert client.strlen("seminar:history:u") == 32 + 2 * 20
        with pytest.raises(StoreUnavailable, match="got a replica, expected the primary"):
            RedisHistoryStore(replica.url)
    assert items(store) == ["i0", "i1"]


def test_lease_of_a_holder_that_died_ends_and_that_of_a_living_one_does_not(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seminar.history.redis_server.LEASE_S", 0.6)
    monkeypatch.setattr("seminar.history.redis_server.POLL_S", 0.02)
    order: list[str] = []

    def second(client: object) -> None:
        with lease(server.client(), "lock", "store"):
            order.append("second")

    with server.client() as client:
        client.set("lock", "a dead holder", px=300)
        with lease(client, "lock", "store"):
            waiting = threading.Thread(target=second, args=(client,))
            waiting.start()
            time.sleep(1.2)
            order.append("first")
        waiting.join()
        assert order == ["first", "second"]
        assert client.get("lock") is None


def test_server_that_lost_names_is_not_read_with_their_numbers(server: RedisServer) -> None:
    """As after a failover, or a crash under appendfsync everysec: the number of a lost name could become that of another."""
    store = RedisHistoryStore(server.url)
    store.append("u", [event(0), event(1)])
    with server.client() as client:
        for key in ("seminar:items", "seminar:items:names"):
            client.delete(key)
    server.kill()
    server.start()
    with pytest.raises(StoreUnavailable, match="got no items of that name at 1"):
        store.read("u")
    other = RedisHistoryStore(server.url)
    assert other.intern("items", ["another"]).tolist() == [0]
    with pytest.raises(StoreUnavailable, match="start every replica of the service again"):
        store.append("u", [event(2)])
