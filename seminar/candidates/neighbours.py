"""Item-kNN: items that the same users took (Sarwar et al. 2001), the neighbourhood method that learned retrieval must beat."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array, vstack

NEIGHBOURS = 200
_BLOCK = 2048


@dataclass(frozen=True)
class ItemNeighbours:
    """Shrunk cosine similarity of items over users, each item's `NEIGHBOURS` nearest kept (itself among them).

    s(i, j) = users of both / (sqrt(users of i x users of j) + shrinkage): without the last, two items that one user took are as
    alike as any can be (Bell and Koren 2007).
    """

    similarity: csr_array

    @classmethod
    def fit(
        cls,
        user_N: Int[ndarray, " N"],
        item_N: Int[ndarray, " N"],
        num_items: int,
        neighbours: int = NEIGHBOURS,
        shrinkage: float = 0.0,
    ) -> "ItemNeighbours":
        """From training behaviours: which user took which item; how often does not matter. shrinkage: in users."""
        ones = np.ones(len(user_N), np.float32)
        taken = csr_array((ones, (user_N, item_N)), shape=(int(user_N.max(initial=-1)) + 1, num_items))
        taken.data[:] = 1
        norm = np.sqrt(taken.sum(0))
        of_item = csr_array(taken.transpose())
        parts = []
        for first in range(0, num_items, _BLOCK):
            both = csr_array(of_item[first : first + _BLOCK] @ taken)
            row = first + np.repeat(np.arange(len(both.indptr) - 1), np.diff(both.indptr))
            both.data /= norm[row] * norm[both.indices] + shrinkage
            parts.append(_nearest(both, neighbours))
        return cls(csr_array(vstack(parts)))

    def scores(self, history: list[Int[ndarray, " _"]]) -> Float[ndarray, "N I"]:
        """Of every item for each history: its similarity to the distinct items in it, added up."""
        rows = [np.unique(items) for items in history]
        bounds = np.concatenate([[0], np.cumsum([len(items) for items in rows])])
        held = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)
        owned = csr_array((np.ones(len(held), np.float32), held, bounds), shape=(len(rows), len(self.similarity.indptr) - 1))
        return (owned @ self.similarity).toarray()


def _nearest(similarity: csr_array, keep: int) -> csr_array:
    """Each row's `keep` largest values."""
    length = np.diff(similarity.indptr)
    row = np.repeat(np.arange(len(length)), length)
    order = np.lexsort((-similarity.data, row))
    chosen = order[np.arange(len(row)) - np.repeat(similarity.indptr[:-1], length) < keep]
    data, column, row = similarity.data[chosen], similarity.indices[chosen], row[chosen]
    return csr_array((data, (row, column)), shape=similarity.shape)
