"""Product quantisation of unit vectors, one codebook a channel: 16 bytes a channel instead of 256; recall figures in benchmarks/.

Codes depend on the PSU's unit vectors alone, so gates, G_j, Wq and Wk may learn on without a re-encode. Codes and codebooks carry
a stamp that names both, and nothing reads a mixture. Fitting lives in `seminar/codes/codebook_fit.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy import ndarray
from safetensors import safe_open
from safetensors.numpy import save_file

from seminar.codes.kmeans import split_spaces
from seminar.codes.nearest import assign
from seminar.codes.rotation import is_identity, rotate
from seminar.errors import DataError, VersionMismatch, explain
from seminar.schema import CHANNELS


@dataclass(frozen=True)
class Stamp:
    """What codes and codebooks must agree on: version of the codebooks, SHA-256 of the parameters that make unit vectors."""

    codebooks: str
    psu_fingerprint: str

    def require(self, expected: "Stamp", what: str) -> None:
        """Raise VersionMismatch with both sides unless this stamp is `expected`."""
        if self != expected:
            raise VersionMismatch(explain(what, got=str(self), expected=str(expected), fix="run fit-codebooks for this model"))

    def __str__(self) -> str:
        return f"codebooks {self.codebooks} of PSU {self.psu_fingerprint[:12]}"


@dataclass(frozen=True)
class Codebooks:
    """Centroids of every channel (CHANNELS order) and sub-space; the first num_centroids_M of C are in use, the rest zero.

    rotation_Mdd: orthogonal; codes are of x R_j, the identity where a channel is not rotated.
    """

    centroid_MSCw: Float32[ndarray, "M S C w"]
    num_centroids_M: Int[ndarray, " M"]
    rotation_Mdd: Float32[ndarray, "M d d"]
    stamp: Stamp

    @property
    def num_subquantizers(self) -> int:
        return self.centroid_MSCw.shape[1]

    @property
    def dim(self) -> int:
        return self.centroid_MSCw.shape[1] * self.centroid_MSCw.shape[3]

    @property
    def code_bits(self) -> int:
        """Bits that a code needs: 4 up to 16 centroids, else 8. In memory and in artefacts a code is a byte."""
        return 4 if self.centroid_MSCw.shape[2] <= 16 else 8

    @property
    def bytes_per_behaviour(self) -> float:
        """Bytes of one behaviour's codes in all channels, packed."""
        return len(self.centroid_MSCw) * self.num_subquantizers * self.code_bits / 8

    def used(self, channel: int) -> Float32[ndarray, "S U w"]:
        """The centroids of one channel that are in use."""
        return np.ascontiguousarray(self.centroid_MSCw[channel, :, : self.num_centroids_M[channel]])

    def quantise(self, channel: int, unit_Nd: Float[ndarray, "N d"]) -> tuple[UInt8[ndarray, "N S"], Float32[ndarray, " N"]]:
        """Codes and squared errors (of unit vectors: 0 to 4). A code does not depend on the other vectors in the call."""
        if len(unit_Nd) and not self.num_centroids_M[channel]:
            what = f"{self.stamp}, channel {CHANNELS[channel]}"
            raise DataError(explain(what, got="vectors", expected="none, it had none when fitted", fix="run fit-codebooks"))
        rotated_Nd = rotate(unit_Nd, self.rotation_Mdd[channel])
        code_NS, distance_NS = assign(split_spaces(rotated_Nd, self.num_subquantizers), self.used(channel))
        return code_NS, distance_NS.sum(1)

    def encode(self, channel: int, unit_Nd: Float[ndarray, "N d"]) -> UInt8[ndarray, "N S"]:
        """Code of each vector; missing vectors have none and must not be passed."""
        return self.quantise(channel, unit_Nd)[0]

    def decode(self, channel: int, code_NS: UInt8[ndarray, "N S"]) -> Float32[ndarray, "N d"]:
        """The vectors that codes stand for; not renormalised."""
        spaces = np.arange(self.num_subquantizers)
        rotated_Nd = self.centroid_MSCw[channel][spaces, code_NS].reshape(len(code_NS), self.dim)
        return rotate(rotated_Nd, np.ascontiguousarray(self.rotation_Mdd[channel].T))

    def rotated(self, vector_TMd: Float[ndarray, "T M d"]) -> Float32[ndarray, "T M d"]:
        """What scorers multiply centroids with: <v, decode(code)> = <v R_j, centroids of the code>; vectors of any length."""
        vector_TMd = np.asarray(vector_TMd, np.float32)
        channels = zip(vector_TMd.swapaxes(0, 1), self.rotation_Mdd, strict=True)
        return np.stack([rotate(vector_Td, rotation_dd) for vector_Td, rotation_dd in channels], 1)


@dataclass(frozen=True)
class CatalogueCodes:
    """Codes of the whole catalogue; a code is meaningful only where its vector is present (elsewhere 0, never read).

    Item channels are text, image, attributes.
    """

    item_code_I3S: UInt8[ndarray, "I 3 S"]
    query_code_QS: UInt8[ndarray, "Q S"]
    item_present_I3: Bool[ndarray, "I 3"]
    query_present_Q: Bool[ndarray, " Q"]
    stamp: Stamp


def encode_block(
    codebooks: Codebooks, channels: Sequence[int], unit_NKd: Float[ndarray, "N K d"], present_NK: Bool[ndarray, "N K"]
) -> tuple[UInt8[ndarray, "N K S"], Float32[ndarray, "N K"]]:
    """Codes of a run of catalogue rows in these channels, and their squared errors; both 0 where a vector is missing."""
    code_NKS = np.zeros((*present_NK.shape, codebooks.num_subquantizers), np.uint8)
    error_NK = np.zeros(present_NK.shape, np.float32)
    for column, channel in enumerate(channels):
        present = present_NK[:, column]
        code_NKS[present, column], error_NK[present, column] = codebooks.quantise(channel, unit_NKd[present, column])
    return code_NKS, error_NK


def save_codes(path: Path, codebooks: Codebooks, codes: CatalogueCodes) -> None:
    """Write codebooks and the codes made with them to one safetensors file; the same content gives the same bytes."""
    codes.stamp.require(codebooks.stamp, "codes")
    tensors = {
        "centroids": codebooks.centroid_MSCw,
        "num_centroids": codebooks.num_centroids_M,
        "item_codes": codes.item_code_I3S,
        "query_codes": codes.query_code_QS,
        "item_present": codes.item_present_I3,
        "query_present": codes.query_present_Q,
    }
    if not all(map(is_identity, codebooks.rotation_Mdd)):
        tensors["rotations"] = codebooks.rotation_Mdd
    # One metadata key only: safetensors writes several in random order, and the file's checksum would change.
    save_file(tensors, path, {"stamp": json.dumps([codebooks.stamp.codebooks, codebooks.stamp.psu_fingerprint])})


def load_codes(path: Path) -> tuple[Codebooks, CatalogueCodes]:
    """Read what `save_codes` wrote; both carry the stamp found in the file."""
    with safe_open(path, "numpy") as file:
        stamp = Stamp(*json.loads(file.metadata()["stamp"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    channels, spaces, _, width = tensors["centroids"].shape
    rotation = tensors.get("rotations", np.tile(np.eye(spaces * width, dtype=np.float32), (channels, 1, 1)))
    codebooks = Codebooks(tensors["centroids"], tensors["num_centroids"], rotation, stamp)
    present = tensors["item_present"], tensors["query_present"]
    return codebooks, CatalogueCodes(tensors["item_codes"], tensors["query_codes"], *present, stamp)


@dataclass(frozen=True)
class Drift:
    """What a new codebook changes for some vectors of one channel; adds up over blocks."""

    points: int
    codes: int
    changed: int
    error_old: float
    error_new: float

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def summary(self) -> dict[str, int | float]:
        """changed: share of codes that differ; distortion_old, distortion_new: mean squared errors."""
        points = max(self.points, 1)
        return {
            "points": self.points,
            "changed": self.changed / max(self.codes, 1),
            "distortion_old": self.error_old / points,
            "distortion_new": self.error_new / points,
        }


def drift(old: Codebooks, new: Codebooks, channel: int, unit_Nd: Float[ndarray, "N d"]) -> Drift:
    """Compare two codebooks on the vectors of one channel."""
    if not (old.num_centroids_M[channel] and new.num_centroids_M[channel]):
        return Drift(0, 0, 0, 0.0, 0.0)
    code_old, error_old = old.quantise(channel, unit_Nd)
    code_new, error_new = new.quantise(channel, unit_Nd)
    errors = float(error_old.sum(dtype=np.float64)), float(error_new.sum(dtype=np.float64))
    return Drift(len(unit_Nd), code_new.size, int((code_old != code_new).sum()), *errors)
