"""Latencies as an HDR-like histogram: buckets 1 % wide from a microsecond to hours, so any percentile is right to 1 %."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

STEP = math.log(1.01)
"""Width of a bucket on a log scale."""


@dataclass
class Histogram:
    """Counts of latencies a bucket: bucket i holds [1.01**i, 1.01**(i + 1)) microseconds, shorter ones are in bucket 0."""

    counts: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, seconds: Iterable[float]) -> "Histogram":
        """Count latencies."""
        return cls(Counter(max(0, int(math.log(max(value * 1e6, 1.0)) / STEP)) for value in seconds))

    @classmethod
    def from_json(cls, counts: Mapping[str, int]) -> "Histogram":
        return cls(Counter({int(bucket): count for bucket, count in counts.items()}))

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        return self.counts.total()

    def ms(self, share: float) -> float:
        """The latency that this share of all requests do not exceed, in milliseconds; NaN without any."""
        rank, seen = share * self.total, 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return math.exp((bucket + 0.5) * STEP) / 1e3
        return math.nan

    def curve(self) -> list[tuple[float, float]]:
        """(share of requests, milliseconds) of each bucket in use: what a percentile plot draws."""
        points, seen = [], 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            points.append((seen / self.total, math.exp((bucket + 0.5) * STEP) / 1e3))
        return points
