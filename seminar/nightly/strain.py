"""How a grown catalogue strains the codebooks in use: measured before they are refitted, so that a report can say why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from seminar.codes.codebook import Codebooks


@dataclass(frozen=True)
class Strain:
    """Vectors of one channel under the codebooks in use, of rows they have encoded (old) and of appended rows (new); adds up.

    *_error: sum of squared errors. changed: codes, of `codes` old ones, that encoding again gives otherwise, because their
    content changed.
    """

    old: int = 0
    old_error: float = 0.0
    new: int = 0
    new_error: float = 0.0
    codes: int = 0
    changed: int = 0

    def __add__(self, other: "Strain") -> "Strain":
        return Strain(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def summary(self) -> dict[str, int | float | None]:
        """Mean squared errors (None without vectors), and the share of codes that changed."""
        return {
            "old_vectors": self.old,
            "old_distortion": self.old_error / self.old if self.old else None,
            "new_vectors": self.new,
            "new_distortion": self.new_error / self.new if self.new else None,
            "changed": self.changed / max(self.codes, 1),
        }


def strain(
    codebooks: Codebooks,
    channels: Sequence[int],
    unit_NKd: Float[ndarray, "N K d"],
    present_NK: Bool[ndarray, "N K"],
    code_OKS: UInt8[ndarray, "O K S"],
    had_OK: Bool[ndarray, "O K"],
) -> list[Strain]:
    """Strain of each channel over a block of catalogue rows; code_OKS and had_OK are what its first O rows were given before."""
    found = []
    for column, channel in enumerate(channels):
        present = present_NK[:, column]
        is_old = np.flatnonzero(present) < len(had_OK)
        if not codebooks.num_centroids_M[channel]:
            # A channel that nothing had when the codebooks were fitted.
            found.append(Strain(old=int(is_old.sum()), new=int((~is_old).sum())))
            continue
        code_nS, error_n = codebooks.quantise(channel, unit_NKd[present, column])
        both = had_OK[:, column] & present[: len(had_OK)]
        again = code_nS[is_old][both[present[: len(both)]]]
        found.append(
            Strain(
                old=int(is_old.sum()),
                old_error=float(error_n[is_old].sum(dtype=np.float64)),
                new=int((~is_old).sum()),
                new_error=float(error_n[~is_old].sum(dtype=np.float64)),
                codes=again.size,
                changed=int((again != code_OKS[both, column]).sum()),
            )
        )
    return found
