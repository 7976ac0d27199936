"""The way to a Redis or Valkey server that histories may be trusted to: what it must promise, and its failures in our words.

Every new connection looks at the server's settings again, so a server that comes back with others is refused, not written to.
Nothing is sent twice: a command whose answer got lost may have been carried out, and only the caller knows if that matters.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from seminar.errors import explain
from seminar.history.store import Durability, HistoryFull, StoreUnavailable

PASSWORD_VARIABLE = "SEMINAR_HISTORY_PASSWORD"
"""Environment variable with the password, for a URL that has none: URLs end up in configs and dashboards."""
OLDEST = (6, 2)
LEASE_S = 10.0
POLL_S = 0.2
_PASSING = (
    "MISCONF",
    "NOREPLICAS",
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "NOAUTH",
    "WRONGPASS",
)
"""Errors of a server that is there but not able, or not willing, to do it now."""
_OWNED = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
_RENEW = _OWNED.format("'PEXPIRE', KEYS[1], ARGV[2]")
_RELEASE = _OWNED.format("'DEL', KEYS[1]")


def connect(url: str, durability: Durability, timeout_s: float, check_more: Callable[[Any], None]) -> redis.Redis:
    """A client whose connections are checked, by `check_more` too; it connects when it is first used.

    timeout_s: of connecting and of each answer.
    """
    name = readable(url)

    def check(connection: Any) -> None:
        connection.on_connect()
        try:
            check_server(connection, durability, name)
            check_more(connection)
        except StoreUnavailable:
            connection.disconnect()
            raise

    return redis.Redis.from_url(
        url,
        protocol=2,
        password=os.environ.get(PASSWORD_VARIABLE),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_keepalive=True,
        # A history of 1e5 comes in 8 reads, not in 60.
        socket_read_size=1 << 18,
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=check,
    )


def readable(url: str) -> str:
    """A URL as an error may show it: without its password."""
    parts = urlsplit(url)
    return f"history store {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def in_our_words(name: str) -> Iterator[None]:
    """Failures of the server: StoreUnavailable where it may be back soon, HistoryFull where its memory is used up."""
    try:
        yield
    except redis.ResponseError as error:
        words = str(error)
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM " in words:
            fix = "raise maxmemory; nothing of this request was stored"
            raise HistoryFull(explain(name, got="no memory left", expected="less than its maxmemory", fix=fix)) from error
        if any(word in words for word in _PASSING):
            raise _unavailable(name, words) from error
        raise
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise _unavailable(name, str(error)) from error


def check_server(connection: Any, durability: Durability, name: str) -> None:
    """StoreUnavailable unless the server can keep what `serve.history_durability` promises."""
    info = _info(connection)
    version = info["redis_version"]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise _refused(name, f"version {version}", "Redis 6.2 or Valkey", "upgrade it")
    if info["role"] != "master":
        raise _refused(name, "a replica", "the primary", "point serve.history_url at the primary")
    if info["maxmemory_policy"] != "noeviction":
        fix = "CONFIG SET maxmemory-policy noeviction: an evicted history is lost"
        raise _refused(name, f"maxmemory-policy {info['maxmemory_policy']}", "noeviction", fix)
    if durability == "server":
        return
    if info["aof_enabled"] != "1":
        raise _refused(name, "appendonly no", "appendonly yes", _fix_for("appendonly yes"))
    sync = _setting(connection, "appendfsync", name)
    if sync != "always" and (durability, sync) != ("everysec", "everysec"):
        raise _refused(name, f"appendfsync {sync}", f"appendfsync {durability}", _fix_for(f"appendfsync {durability}"))
    if _setting(connection, "no-appendfsync-on-rewrite", name) != "no":
        wanted = "no-appendfsync-on-rewrite no"
        raise _refused(name, "no-appendfsync-on-rewrite yes", wanted, _fix_for(wanted))


@contextmanager
def lease(client: redis.Redis, key: str, name: str) -> Iterator[None]:
    """One holder at a time; a thread keeps it while the body runs, and what a dead holder held ends by itself after LEASE_S."""
    token, ttl_ms, done = uuid.uuid4().hex, int(1000 * LEASE_S), threading.Event()

    def keep() -> None:
        while not done.wait(LEASE_S / 3):
            with suppress(redis.RedisError, StoreUnavailable):
                client.eval(_RENEW, 1, key, token, ttl_ms)

    with in_our_words(name):
        while not client.set(key, token, nx=True, px=ttl_ms):
            time.sleep(POLL_S)
    keeper = threading.Thread(target=keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        with suppress(redis.RedisError, StoreUnavailable):
            client.eval(_RELEASE, 1, key, token)


def _info(connection: Any) -> dict[str, str]:
    connection.send_command("INFO")
    lines = bytes(connection.read_response()).decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _setting(connection: Any, setting: str, name: str) -> str:
    connection.send_command("CONFIG", "GET", setting)
    try:
        _, value = connection.read_response()
    except redis.ResponseError as error:
        fix = 'allow CONFIG GET, or set serve.history_durability = "server" and answer for the server\'s settings yourself'
        raise _refused(name, f"CONFIG GET {setting}: {error}", "its value", fix) from error
    return value.decode()


def _fix_for(setting: str) -> str:
    return f"CONFIG SET {setting} and CONFIG REWRITE, or choose another serve.history_durability"


def _refused(name: str, got: str, expected: str, fix: str) -> StoreUnavailable:
    return StoreUnavailable(explain(name, got=got, expected=expected, fix=fix))


def _unavailable(name: str, got: str) -> StoreUnavailable:
    fix = "retry in a moment; events with an event_id are stored once, however often they are sent"
    return _refused(name, got, "a server that answers", fix)
