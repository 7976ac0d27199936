"""The load generator of `seminar bench serve`: it counts what it should, against a server whose delays are known."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks.histogram import Histogram
from benchmarks.serve_client import Load, Plan, Result

OK = b'{"scores":[0.25,0.5]}'


def test_percentiles_are_right_to_one_percent_and_add_up() -> None:
    parts = [Histogram.of(ms / 1e3 for ms in range(start, 1001, 2)) for start in (1, 2)]
    whole = parts[0] + parts[1]
    assert whole.total == 1000
    for share in (0.5, 0.9, 0.99):
        assert whole.ms(share) == pytest.approx(1000 * share, rel=0.011)
    assert Histogram.from_json(json.loads(json.dumps(whole.counts))).counts == whole.counts
    assert whole.curve()[-1][0] == 1


def measure(answer: Callable[[int], Awaitable[bytes]], folder: Path, **how: object) -> Result:
    """What the generator says of a server that gives `answer(number)`: all bytes, or nothing to hang up."""

    async def both() -> Result:
        numbers = iter(range(10**6))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next((int(p.split(b":")[1]) for p in head.split(b"\r\n") if p.startswith(b"Content-Length")), 0)
                    await reader.readexactly(length)
                    content = await answer(next(numbers))
                    writer.write(content)
                    if not content:
                        break
            except asyncio.IncompleteReadError:
                pass
            writer.close()

        requests = folder / "requests.txt"
        requests.write_text("\n".join(f"u{n}\t{{}}" for n in range(40)))
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await Load(Plan(port, "/", str(requests), **how)).run()  # type: ignore[arg-type]

    return asyncio.run(both())


def http(status: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""])
    return head.encode() + body


def test_closed_loop_has_as_many_in_flight_as_asked(tmp_path: Path) -> None:
    flying = most = 0

    async def answer(_: int) -> bytes:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0.01)
        flying -= 1
        return http("200 OK", OK)

    told = measure(answer, tmp_path, seconds=0.5, concurrency=4, scores=2)
    assert most == 4
    assert told.good == told.sent == sum(told.latency.values())
    assert 40 < told.good <= 200
    assert told.failures == []


def test_open_loop_counts_from_the_time_a_request_was_due(tmp_path: Path) -> None:
    """A stall of the whole server delays everybody who was due in it, not one request."""
    began = time.monotonic()

    async def answer(_: int) -> bytes:
        if 0.3 < time.monotonic() - began < 0.35:
            time.sleep(0.4)
        return http("200 OK", OK)

    told = measure(answer, tmp_path, seconds=1.2, rate=200.0)
    assert told.sent == told.good > 150
    late = [share for share, ms in Histogram.from_json(told.latency).curve() if ms < 100]
    assert max(late) < 0.85


def test_every_line_once(tmp_path: Path) -> None:
    async def answer(_: int) -> bytes:
        return http("200 OK", OK)

    assert measure(answer, tmp_path, seconds=5.0, concurrency=3, once=True).good == 40


@pytest.mark.parametrize(
    "body",
    [b'{"scores":[0.25]}', b'{"scores":[0.25,NaN]}', b'{"scores":[null,0.5]}', b'{"scores":[]}', b"{}"],
    ids=["too few", "not a number", "null", "none", "nothing"],
)
def test_wrong_answer_is_no_answer(tmp_path: Path, body: bytes) -> None:
    async def answer(_: int) -> bytes:
        return http("200 OK", body)

    told = measure(answer, tmp_path, seconds=0.1, concurrency=1, scores=2, max_requests=3)
    assert (told.good, told.sent, len(told.failures)) == (0, 3, 3)


def test_refusal_counts_apart_only_with_retry_after(tmp_path: Path) -> None:
    async def answer(number: int) -> bytes:
        return http("503 Service Unavailable", b"full", *(["Retry-After: 1"] if number % 2 else []))

    told = measure(answer, tmp_path, seconds=5.0, concurrency=1, max_requests=10)
    assert (told.refused, len(told.failures), told.good) == (5, 5, 0)


def test_kept_connection_that_was_closed_is_replaced_and_the_request_sent_again(tmp_path: Path) -> None:
    async def answer(number: int) -> bytes:
        if number % 5 == 4:
            return b""
        return http("200 OK", OK, *(["Connection: close"] if number % 5 == 2 else []))

    told = measure(answer, tmp_path, seconds=5.0, concurrency=2, max_requests=30)
    assert (told.good, told.failures) == (30, [])
    assert told.resent > 0
