"""Which vectors a codebook is fitted to: distinct ones, and a sample by the hash of catalogue rows."""

import numpy as np
from jaxtyping import Float32, Int, Shaped
from numpy import ndarray

from seminar.hashing import mix64


def sampling_order(num_rows: int, seed: int) -> Int[ndarray, " N"]:
    """Catalogue rows by their hash. The first present ones are a channel's sample; rows added later displace few of them."""
    return np.argsort(mix64(mix64(np.arange(num_rows, dtype=np.uint64)) + np.uint64(seed)), kind="stable")


def distinct_rows(vector_Nd: Float32[ndarray, "N d"]) -> Float32[ndarray, "U d"]:
    """Distinct rows in a fixed order. Rows within 2**-12 in every coordinate may count as one: the same content, projected in two
    blocks, differs in the last bits. Compared as bytes, which is five times faster than by value."""
    return vector_Nd[np.unique(_grid(vector_Nd), return_index=True)[1]]


def in_old_places(distinct_Ud: Float32[ndarray, "U d"], old_SCw: Float32[ndarray, "S C w"]) -> Float32[ndarray, "U d"]:
    """The vectors that each become a centroid, reordered: one that was a centroid before keeps its number, so its codes stay."""
    old_Cd = np.ascontiguousarray(old_SCw.swapaxes(0, 1).reshape(old_SCw.shape[1], -1))
    number = {row.tobytes(): place for place, row in enumerate(_grid(old_Cd)[: len(distinct_Ud)])}
    place_U = np.array([number.get(row.tobytes(), -1) for row in _grid(distinct_Ud)])
    place_U[place_U < 0] = np.setdiff1d(np.arange(len(distinct_Ud)), place_U)
    placed_Ud = np.empty_like(distinct_Ud)
    placed_Ud[place_U] = distinct_Ud
    return placed_Ud


def _grid(vector_Nd: Float32[ndarray, "N d"]) -> Shaped[ndarray, " N"]:
    grid = np.rint(vector_Nd * 4096).astype(np.int16)
    return grid.view(np.dtype((np.void, grid.itemsize * grid.shape[1])))[:, 0]
