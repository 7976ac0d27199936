"""Does a user come back to the replica that knows him? Asked of the trivial endpoint and of the caches."""

import http.client
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from benchmarks.serve_client import HOST
from serve.deploy import served

USERS, ROUNDS, THREADS = 60, 5, 8


def stickiness(port: int, *, header: bool) -> float:
    """Share of the requests that reached their user's usual replica, 8 users at a time. header: send x-session-id."""
    with ThreadPoolExecutor(THREADS) as pool:
        reached = list(pool.map(lambda user: _replicas(port, f"user-{user}", header=header), range(USERS)))
    return sum(max(counts.values()) for counts in reached) / (USERS * ROUNDS)


def _replicas(port: int, user: str, *, header: bool) -> Counter[str]:
    """How often each replica answered."""
    counts: Counter[str] = Counter()
    for _ in range(ROUNDS):
        # A connection each, as from many clients: a kept one could hold on to its replica by itself.
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        connection.request("GET", "/trivial/replica", headers={"x-session-id": user} if header else {})
        counts[json.load(connection.getresponse())] += 1
        connection.close()
    return counts


def cache_counts(port: int) -> tuple[int, int]:
    """Hits and misses of all replicas' user caches."""
    states = served(f"http://{HOST}:{port}/seminar")["replicas"]
    return sum(state["user_cache_hits"] for state in states), sum(state["user_cache_misses"] for state in states)
