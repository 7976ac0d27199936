"""What codes lose, by how often an item was taken in training: codebooks are fitted to items, traffic goes to few of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from numpy import ndarray

from seminar.codes.codebook import Codebooks, Drift, drift

BUCKETS = ("never", "once", "2-9", "10-99", "100+")
"""Behaviours in training that an item was taken in."""
_FIRST = (1, 2, 10, 100)


@dataclass(frozen=True)
class ErrorByFrequency:
    """Vectors of one channel and the sum of their squared errors in each of BUCKETS; adds up over blocks of rows."""

    vectors_F: Int[ndarray, " F"]
    error_F: Float64[ndarray, " F"]

    @classmethod
    def of(cls, count_N: Int[ndarray, " N"], present_N: Bool[ndarray, " N"], error_N: Float[ndarray, " N"]) -> "ErrorByFrequency":
        """From each row's training count and squared error; rows without a vector are left out."""
        bucket_n = np.searchsorted(_FIRST, count_N[present_N], side="right")
        error_F = np.bincount(bucket_n, error_N[present_N], len(BUCKETS)).astype(np.float64)
        return cls(np.bincount(bucket_n, minlength=len(BUCKETS)), error_F)

    def __add__(self, other: "ErrorByFrequency") -> "ErrorByFrequency":
        return ErrorByFrequency(self.vectors_F + other.vectors_F, self.error_F + other.error_F)

    def summary(self) -> dict[str, dict[str, int | float | None]]:
        """By bucket: vectors, and their mean squared error (None without vectors)."""
        return {
            name: {"vectors": int(vectors), "distortion": float(error / vectors) if vectors else None}
            for name, vectors, error in zip(BUCKETS, self.vectors_F, self.error_F, strict=True)
        }


@dataclass(frozen=True)
class Loss:
    """What codes lose of one channel's vectors in some catalogue rows; adds up.

    error: sum of squared errors. drift: after a warm start what changed, by part of the catalogue. frequency: None where rows
    have no training count.
    """

    vectors: int
    error: float
    drift: dict[str, Drift]
    frequency: ErrorByFrequency | None

    def __add__(self, other: "Loss") -> "Loss":
        drifts = {part: found + other.drift[part] for part, found in self.drift.items()}
        frequency = None if self.frequency is None or other.frequency is None else self.frequency + other.frequency
        return Loss(self.vectors + other.vectors, self.error + other.error, drifts, frequency)

    def summary(self) -> dict[str, Any]:
        """catalogue_distortion: mean squared error; the other parts under their names."""
        return {
            "vectors": self.vectors,
            "catalogue_distortion": self.error / max(self.vectors, 1),
            "by_frequency": {} if self.frequency is None else self.frequency.summary(),
            "drift": {part: found.summary() for part, found in self.drift.items()},
        }


def losses(
    codebooks: Codebooks,
    old: Codebooks | None,
    channels: Sequence[int],
    unit_NKd: Float[ndarray, "N K d"],
    present_NK: Bool[ndarray, "N K"],
    error_NK: Float32[ndarray, "N K"],
    first_new: int,
    count_N: Int[ndarray, " N"] | None,
) -> list[Loss]:
    """Losses of a block in these channels, from the errors of its codes; rows from `first_new` on are unknown to `old`."""
    found = []
    for column, channel in enumerate(channels):
        present, error = present_NK[:, column], error_NK[:, column]
        drifts = {}
        if old is not None:
            parts = {"all": present, "new": present & (np.arange(len(present)) >= first_new)}
            drifts = {part: drift(old, codebooks, channel, unit_NKd[rows, column]) for part, rows in parts.items()}
        frequency = None if count_N is None else ErrorByFrequency.of(count_N, present, error)
        found.append(Loss(int(present.sum()), float(error[present].sum(dtype=np.float64)), drifts, frequency))
    return found


def sentence(channel: str, report: Mapping[str, Any]) -> str:
    """One channel's report in one line for a console."""
    if not report["vectors"]:
        return f"{channel}: no item has it"
    if report["lossless"]:
        said = f"its {report['distinct']:,} distinct vectors have a centroid each, so codes lose nothing"
    else:
        said = f"codes lose {100 * report['catalogue_distortion']:.2f} % of a vector's squared length"
        found = report.get("by_frequency", {}).items()
        parts = [f"{name} {100 * part['distortion']:.2f} %" for name, part in found if part["vectors"]]
        said += f" (items taken in training {', '.join(parts)})" if parts else ""
    if report["dead"] or report["duplicates"]:
        said += f"; {report['dead']} dead and {report['duplicates']} duplicate centroids"
    if "all" in report["drift"]:
        said += f"; {100 * (1 - report['drift']['all']['changed']):.1f} % of codes as before"
    return f"{channel}: {said}"
