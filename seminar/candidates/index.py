"""The items nearest to a user, by inner product: a faiss index whose kind follows the size of the catalogue.

    flat     exact; 260 bytes an item at d = 64
    hnsw     a graph (Malkov and Yashunin 2018), over vectors whose inner products it turns into distances; 530 bytes an item
    ivf_pq   cells, codes of `code_bytes`, and the best of them scored again in half precision; 230 bytes an item

A graph searches by distance, and the nearest is not the one with the largest inner product where vectors differ in length. So an
item gets one more component, sqrt(most^2 - |item|^2), and a user a 0 (Bachrach et al. 2014): then all items are equally long.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.config import IndexConfig
from seminar.errors import ConfigError, explain
from seminar.faiss_extra import faiss_module

Kind = Literal["flat", "hnsw", "ivf_pq"]
FLAT_ITEMS, HNSW_ITEMS = 50_000, 5_000_000
_CANDIDATES = 8
"""ivf_pq: items scored again for each one returned."""


@dataclass(frozen=True)
class ItemIndex:
    """Searches one catalogue; rows are catalogue rows. length_squared: of every vector of a graph."""

    kind: Kind
    effort: int
    length_squared: float
    faiss: Any

    @classmethod
    def build(cls, item_Id: Float[ndarray, "I d"], config: IndexConfig) -> "ItemIndex":
        """Index catalogue rows 0 .. I-1; ConfigError where the kind needs more items than there are."""
        faiss = faiss_module("an item index")
        item_Id, size = np.ascontiguousarray(item_Id, np.float32), len(item_Id)
        kind, length = _kind(config, size), 0.0
        if kind == "flat":
            index = faiss.IndexFlatIP(item_Id.shape[1])
        elif kind == "hnsw":
            item_Id, length = _equally_long(item_Id)
            index = faiss.IndexHNSWFlat(item_Id.shape[1], config.neighbours, faiss.METRIC_L2)
            index.hnsw.efConstruction = config.build_effort
        else:
            item_Id = _padded(item_Id, config.code_bytes * -(-item_Id.shape[1] // config.code_bytes))
            cells = int(4 * math.sqrt(size))
            if size < max(cells, 256):
                got, fix = f"{size} items", "choose flat or hnsw for so small a catalogue"
                raise ConfigError(explain("index.kind ivf_pq", got=got, expected="at least 256", fix=fix))
            index = faiss.index_factory(
                item_Id.shape[1], f"IVF{cells},PQ{config.code_bytes}np,Refine(SQfp16)", faiss.METRIC_INNER_PRODUCT
            )
            index.train(item_Id)
        index.add(item_Id)
        return cls(kind, config.effort, length, index)

    def search(self, user_Nd: Float[ndarray, "N d"], n: int) -> tuple[Int[ndarray, "N m"], Float[ndarray, "N m"]]:
        """The n best rows of each user (all, where the catalogue is smaller) and their inner products, best first."""
        faiss, n = faiss_module("an item index"), min(n, self.num_items)
        user_Nd = _padded(np.ascontiguousarray(user_Nd, np.float32), self.faiss.d)
        if self.kind == "flat":
            score, row = self.faiss.search(user_Nd, n)
        elif self.kind == "hnsw":
            distance, row = self.faiss.search(user_Nd, n, params=faiss.SearchParametersHNSW(efSearch=max(self.effort, n)))
            # |u - x|^2 = |u|^2 + |x|^2 - 2 <u, x>
            score = (np.square(user_Nd).sum(1)[:, None] + self.length_squared - distance) / 2
        else:
            inside = faiss.SearchParametersIVF(nprobe=self.effort)
            params = faiss.IndexRefineSearchParameters(k_factor=_CANDIDATES, base_index_params=inside)
            score, row = self.faiss.search(user_Nd, n, params=params)
        return row, score.astype(np.float32)

    @property
    def num_items(self) -> int:
        return self.faiss.ntotal

    @property
    def facts(self) -> dict[str, Any]:
        """What `load` needs beside the file."""
        return {"kind": self.kind, "effort": self.effort, "length_squared": self.length_squared}

    def save(self, path: Path) -> None:
        faiss_module("an item index").write_index(self.faiss, str(path))

    @classmethod
    def load(cls, path: Path, facts: Mapping[str, Any]) -> "ItemIndex":
        """facts: as they were when it was saved."""
        return cls(**facts, faiss=faiss_module("an item index").read_index(str(path)))


def recall(item_Id: Float[ndarray, "I d"], user_Nd: Float[ndarray, "N d"], found_Nn: Int[ndarray, "N n"]) -> Float[ndarray, " N"]:
    """Share of each user's found rows that exact search could have returned: equals of the n-th best count too."""
    exact = ItemIndex.build(item_Id, IndexConfig(kind="flat"))
    worst_N1 = exact.search(user_Nd, found_Nn.shape[1])[1].min(1, keepdims=True)
    score_Nn = np.einsum("nd,nkd->nk", user_Nd, item_Id[found_Nn])
    # A search that ends early fills up with row -1.
    return ((found_Nn >= 0) & (score_Nn >= worst_N1 - 1e-5 * np.abs(worst_N1))).mean(1)


def _kind(config: IndexConfig, size: int) -> Kind:
    if config.kind != "auto":
        return config.kind
    return "flat" if size <= FLAT_ITEMS else "hnsw" if size <= HNSW_ITEMS else "ivf_pq"


def _equally_long(item_Id: Float[ndarray, "I d"]) -> tuple[Float[ndarray, "I d1"], float]:
    squared = np.square(item_Id, dtype=np.float64).sum(1)
    most = float(squared.max(initial=0.0))
    missing = np.sqrt(np.maximum(most - squared, 0.0)).astype(np.float32)
    return np.concatenate([item_Id, missing[:, None]], 1), most


def _padded(vector: Float[ndarray, "N d"], width: int) -> Float[ndarray, "N w"]:
    return np.pad(vector, ((0, 0), (0, width - vector.shape[1])))
