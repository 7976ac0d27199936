"""The autoscaling policy: a table of loads, and simulated services on which it must come to rest."""

import math
from types import SimpleNamespace

import cloudpickle
import pytest

from serve.autoscaling import CALM, Cause, Load, Policy, Targets, wanted
from serve.latency import WINDOW_S, Latencies

TARGETS = Targets(ongoing=4, p95_ms=50, least=1, most=8)


@pytest.mark.parametrize(
    ("replicas", "ongoing", "p95_ms", "expected", "why"),
    [
        (1, 0.0, 0.0, 1, "idle, and never below the least"),
        (1, 4.0, 40.0, 1, "at the target"),
        (1, 9.0, 40.0, 3, "requests in flight alone ask for more"),
        (2, 100.0, 40.0, 8, "never above the most"),
        (1, 0.5, 60.0, 2, "p95 over its target, few requests in flight"),
        (4, 2.0, 75.0, 6, "by how much it is over"),
        (3, 2.0, 5000.0, 6, "twice as many at most"),
        (6, 2.0, 5000.0, 8, "and never above the most"),
        (4, 2.0, 10.0, 3, "calm: one fewer"),
        (4, 2.0, 34.0, 4, "three would have a p95 too near the target"),
        (4, 11.0, 10.0, 4, "three would carry too many requests"),
        (2, 0.0, 45.0, 2, "neither calm nor over"),
        (9, 0.0, 0.0, 8, "a bound that was lowered"),
    ],
)
def test_replicas_wanted(replicas: int, ongoing: float, p95_ms: float, expected: int, why: str) -> None:
    assert wanted(Load(replicas, ongoing, p95_ms), TARGETS)[0] == expected, why


def test_least_is_kept_when_nothing_happens() -> None:
    assert wanted(Load(2, 0, 0), Targets(4, 50, least=2, most=8))[0] == 2


def test_latency_that_more_replicas_do_not_cure_does_not_take_them_all() -> None:
    """One user with a long history is slow on any number of replicas."""
    replicas, cause = 1, Cause()
    for _ in range(50):
        replicas, cause = wanted(Load(replicas, 1.0, 80.0), TARGETS, cause)
    assert replicas == 2


def test_latency_that_more_replicas_cure_gets_as_many_as_it_needs_and_they_stay() -> None:
    replicas, cause, seen = 1, Cause(), []
    for _ in range(50):
        # Less in flight than the requests' own target, so that only the latency asks.
        replicas, cause = wanted(Load(replicas, 0.9 * replicas, 160 / replicas), TARGETS, cause)
        seen.append(replicas)
    assert 160 / replicas <= 50
    assert set(seen[10:]) == {replicas}


@pytest.mark.parametrize("work", [0.3, 1.0, 2.5, 4.0, 6.3, 7.4])
@pytest.mark.parametrize("start", [1, 4, 8])
def test_constant_load_comes_to_rest(work: float, start: int) -> None:
    """An M/M/1-like service: latency grows with the share of time a replica is busy, requests in flight by Little's law."""
    replicas, cause, seen = start, Cause(), []
    for _ in range(100):
        busy = min(work / replicas, 0.99)
        latency_ms = 10 / (1 - busy)
        replicas, cause = wanted(Load(replicas, work * latency_ms / 10, 3 * latency_ms), TARGETS, cause)
        seen.append(replicas)
    assert len(set(seen[30:])) == 1
    assert seen[-1] * 1.0 > work * 0.9


def test_what_makes_a_replica_go_cannot_call_it_back() -> None:
    for tenth in range(1, 400):
        for replicas in range(2, 9):
            load = Load(replicas, tenth / 10, tenth / 8)
            fewer, cause = wanted(load, TARGETS)
            if fewer < replicas:
                after = Load(fewer, load.ongoing, load.p95_ms * replicas / fewer)
                assert after.p95_ms <= CALM * TARGETS.p95_ms
                assert wanted(after, TARGETS, cause)[0] <= fewer


def context(replicas: int, ongoing: float, p95: dict[str, float], state: dict[str, object]) -> SimpleNamespace:
    return SimpleNamespace(
        current_num_replicas=replicas,
        total_num_requests=ongoing,
        aggregated_metrics={"p95_ms": p95},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state=state,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 4.0),
    )


def test_serve_can_carry_the_policy_into_its_controller_and_its_state_along() -> None:
    policy = cloudpickle.loads(cloudpickle.dumps(Policy))(target_p95_ms=50)
    wish, state = policy(context(1, 1.0, {"a": 80.0}, {}))
    assert wish == 2
    wish, state = policy(context(2, 1.0, {"a": 80.0, "new": 0.0}, state))
    assert wish == 2
    wish, state = policy(context(2, 0.0, {}, state))
    assert wish == 1
    assert state == {"replicas": 0, "p95_ms": math.inf}


def test_percentile_is_of_the_newest_requests() -> None:
    latencies = Latencies()
    assert latencies.p95_ms() == 0
    for ms in range(1, 101):
        latencies.add(0.0, ms / 1000)
    assert latencies.p95_ms(now=1.0) == pytest.approx(95, abs=1)
    assert latencies.p95_ms(now=2 * WINDOW_S) == 0
