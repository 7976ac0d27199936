"""Requests that a service must survive: good ones, the same bent, bytes that are none, and what no HTTP library sends."""

import json
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit


def good(draw: random.Random, item: str) -> tuple[str, dict[str, Any]]:
    """A request that would be answered."""
    user, target = f"fuzz{draw.randrange(50)}", {"item_id": item}
    return draw.choice(
        [
            ("/v1/score", {"user_id": user, "targets": [target] * draw.randint(1, 5)}),
            ("/v1/score:batch", {"requests": [{"user_id": user, "targets": [target]}] * draw.randint(1, 3)}),
            ("/v1/recommend", {"user_id": user, "n": 3, "candidates": 20}),
            ("/v1/explain", {"user_id": user, "target": target, "newest": 5}),
            ("/v1/events", {"user_id": user, "events": [{**target, "time_ms": 1_700_000_000_000 + draw.randrange(10**9)}]}),
        ]
    )


STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 10**400, 1.5, float("nan"), float("inf"), 1e308, -0.0),
    *("", " ", "\x00", "\ud800", "\u202e", "x" * 100_000, "ctr", "psr", "exact", "..", "../../etc/passwd", "current", "<script>"),
    *([], {}, [[]], [None] * 1000, {"": 0}),
)


MAX_BENT = 1 << 25
"""Bytes of JSON, beyond what the service reads of a body."""


def bent(draw: random.Random, value: Any) -> Any:
    """The value with one place of it replaced, removed, repeated or added to."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        change = draw.random()
        if change < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if change < 0.2:
            return {**value, draw.choice(["", key + "s", "\ud800", "__proto__", "item", "query"]): draw.choice(STRANGE)}
        return {**value, key: bent(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place, times = draw.randrange(len(value)), draw.choice([1, 1, 1, 2, 2000])
        changed = [*value[:place], bent(draw, value[place]), *value[place + 1 :]]
        # Lists in lists, both repeated, with a long text inside would be hundreds of GB.
        return changed * times if times * len(json.dumps(changed)) <= MAX_BENT else changed
    return draw.choice(STRANGE)


def nasty_body(draw: random.Random, body: dict[str, Any]) -> bytes:
    """Bytes that are no request, or hardly one."""
    text = json.dumps(bent(draw, body)).encode()
    place = draw.randrange(len(text) + 1)
    return draw.choice(
        [
            text,
            text,
            text,
            text[:place],
            text[:place] + bytes([draw.randrange(256)]) + text[place:],
            text[:place] + b"\xff\xfe" + text[place:],
            b"[" * draw.choice([10, 1000, 1_000_000]),
            b'{"a":' * draw.choice([10, 1000, 200_000]) + b"1",
            text[:-1] + b"," + text[1:],
            json.dumps(body).encode("utf-16"),
            json.dumps(body)[:-1].encode() + b',"user_id":"twice"}',
            b'{"user_id": ' + b"9" * 10_000 + b"}",
            b"",
            b"\x00" * 100,
            json.dumps(body).encode() + b"}" * 3,
            b" " * draw.choice([100, 17 << 20]) if draw.random() < 0.02 else b"null",
        ]
    )


def pieces(draw: random.Random, content: bytes) -> Iterator[bytes]:
    """The content as a chunked body."""
    size = draw.choice([1 << 10, 1 << 16, 1 << 20])
    yield from (content[at : at + size] for at in range(0, len(content), size))


def strange_path(draw: random.Random) -> str:
    """A path, of ours or nearly."""
    strange = draw.choice(
        ["%00", "%ff%fe", "..%2f..", "a" * 3000, "%F0%9F%98%80", "-1", "1e9", "NaN", "", "'", "%25", "\u202e", "*"]
    )
    return draw.choice(
        [
            f"/v1/users?prefix={strange}",
            f"/v1/users?limit={strange}",
            f"/v1/items?text={strange}&limit=3",
            f"/v1/queries?text={strange}&text={strange}",
            f"/v1/users/{strange}/history",
            f"/v1/users/fuzz1/history?limit={strange}",
            f"/v1/{strange}",
            f"/explorer/{strange}/x.js",
            f"/v2/models/{strange}",
            "/v1/bundles",
            "/v1/bundle",
            "/v1/score",
        ]
    )


def raw(url: str, draw: random.Random) -> None:
    """What no HTTP library sends: the service, or the proxy before it, may close the connection, and must live on."""
    host = urlsplit(url)
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\ncontent-type: application/json\r\n"
    texts = [
        b"\x16\x03\x01" + draw.randbytes(100),
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        head + b"content-length: 10\r\ncontent-length: 20\r\n\r\n{}",
        head + b"content-length: -5\r\n\r\n{}",
        head + b"content-length: 1000000\r\n\r\n{",
        head[: draw.randrange(1, len(head))],
        head + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        head + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        head + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        head + b"authorization: Bearer \xff\xfe\r\ncontent-length: 2\r\n\r\n{}",
    ]
    with suppress(OSError), socket.create_connection((host.hostname or "", host.port or 80), 2) as connection:
        connection.settimeout(0.3)
        connection.sendall(draw.choice(texts))
        connection.recv(4096)
