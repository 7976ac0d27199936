"""How many replicas a deployment wants: by requests in flight and by the 95th percentile of their latency, without flapping.

Serve pickles this module by value into its controller and applies min_replicas, max_replicas and the delays of autoscaling_config
around the answer, so it holds plain Python alone. `serve/latency.py` records the percentile on every replica.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CALM = 0.7
"""A replica goes only if the rest would then carry at most this share of both targets: what makes it go cannot call it back."""
MOST = 2.0
"""At most this factor at once on account of latency, which says that it is too much, not how many replicas would cure it."""
HELPED = 0.9
"""Latency calls for more replicas again only after the last ones brought it down to this share."""
P95 = "p95_ms"


@dataclass(frozen=True)
class Load:
    """What a deployment's replicas carry. ongoing: requests running or waiting. p95_ms: of the latency, 0 without requests."""

    replicas: int
    ongoing: float
    p95_ms: float


@dataclass(frozen=True)
class Targets:
    """What a replica may carry, and how many there may be."""

    ongoing: float
    p95_ms: float
    least: int = 1
    most: int = 1_000_000


@dataclass(frozen=True)
class Cause:
    """The load that last asked for replicas by its latency; kept from one decision to the next."""

    replicas: int = 0
    p95_ms: float = math.inf


def wanted(load: Load, targets: Targets, last: Cause = Cause()) -> tuple[int, Cause]:
    """Replicas wanted now, in targets.least..most, and what to remember.

    More: as many as the requests in flight ask for; else one to twice as many while the p95 is over its target, unless those that
    came for it last did not help (one slow user is slow on any number of replicas). Fewer: one at a time, once the others would
    carry at most CALM of both targets. Else as many as there are.
    """
    by_requests = math.ceil(load.ongoing / targets.ongoing)
    cause = last if load.p95_ms > CALM * targets.p95_ms else Cause()
    # Replicas that latency asked for and that have not come yet are asked for again.
    helped = load.replicas <= cause.replicas or load.p95_ms <= HELPED * cause.p95_ms
    wish = load.replicas
    if by_requests > load.replicas:
        wish = by_requests
    elif load.p95_ms > targets.p95_ms and helped:
        wish = max(load.replicas + 1, math.ceil(load.replicas * min(MOST, load.p95_ms / targets.p95_ms)))
        cause = Cause(load.replicas, load.p95_ms)
    elif _spare(load, targets):
        wish = load.replicas - 1
    return min(max(wish, targets.least), targets.most), cause


def _spare(load: Load, targets: Targets) -> bool:
    """Whether one replica fewer would do, taking latency to grow with the load of each."""
    rest = load.replicas - 1
    calm = load.p95_ms * load.replicas <= CALM * targets.p95_ms * rest
    return rest > 0 and calm and load.ongoing <= CALM * targets.ongoing * rest


class Policy:
    """What `autoscaling_config.policy` names. target_p95_ms: `policy_kwargs` of the YAML."""

    def __init__(self, target_p95_ms: float) -> None:
        self.target_p95_ms = target_p95_ms

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """context: Serve's AutoscalingContext; its min_replicas and max_replicas are kept here too."""
        reported = (context.aggregated_metrics or {}).get(P95, {})
        load = Load(context.current_num_replicas, context.total_num_requests, _mean(reported))
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        targets = Targets(context.config.get_target_ongoing_requests(), self.target_p95_ms, least, most)
        state = context.policy_state or {}
        last = Cause(state["replicas"], state["p95_ms"]) if "p95_ms" in state else Cause()
        wish, cause = wanted(load, targets, last)
        return wish, {"replicas": cause.replicas, "p95_ms": cause.p95_ms}


def _mean(reported: Mapping[Any, float]) -> float:
    """Over the replicas that had requests: a new one has none yet, and no part in the latency."""
    values = [value for value in reported.values() if value > 0]
    return sum(values) / len(values) if values else 0.0
