"""The GSU's search of a served history: keys from a bundle, the method from the regime, packed keys from a store."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor

from seminar.bundle import Bundle
from seminar.channels import UnitTables, encode_pairs
from seminar.gate import gate_softmax
from seminar.ranker import Ranker
from seminar.retrieval.base import Index, Keys, Probe, Retriever, TopK
from seminar.retrieval.exact import ExactRetriever, MergedRetriever
from seminar.retrieval.int8 import Int8Retriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.key_store import KeyStore
from seminar.retrieval.pq import PQRetriever
from seminar.retrieval.regime import Choice, Method, Situation, choose, override
from seminar.retrieval.rescored import LookedUp, RescoredIndex, RescoredRetriever


@runtime_checkable
class Rows(Protocol):
    """A history as catalogue rows; user_id names whose it is, if packed keys may be kept."""

    @property
    def item_L(self) -> Int[ndarray, " L"]: ...

    @property
    def query_L(self) -> Int[ndarray, " L"]: ...

    @property
    def user_id(self) -> str | None: ...


@runtime_checkable
class Catalogue(Protocol):
    """What keys are made of: a bundle, or as much of one."""

    @property
    def units(self) -> UnitTables: ...

    @property
    def ranker(self) -> Ranker: ...


class HistoryKeys:
    """Presence and weights of a history's channels, worked out for the rows that are asked for."""

    def __init__(self, catalogue: Catalogue, history: Rows) -> None:
        self._catalogue = catalogue
        self.item_L, self.query_L = torch.from_numpy(history.item_L), torch.from_numpy(history.query_L)

    def __len__(self) -> int:
        return len(self.item_L)

    def __getitem__(self, rows: slice | Int[Tensor, " N"]) -> Keys:
        item, query = self.item_L[rows], self.query_L[rows]
        units, gsu = self._catalogue.units, self._catalogue.ranker.gsu
        if gsu.gate.mode == "behaviour":
            gated = gsu.gated(encode_pairs(units, item, query))
            return Keys(item, query, gated.pairs.present_NM, gated.weight_NM)
        # Other gates need no vectors: presence alone decides a behaviour's weights.
        has_query = (query >= 0) & units.query_present[query.clamp_min(0)] if len(units.query_present) else query >= 0
        present = torch.cat([has_query[:, None], units.item_present[item]], 1)
        return Keys(item, query, present, gate_softmax(gsu.gate.logit.expand(len(item), -1), present))


def key_space(catalogue: Catalogue) -> KeySpace:
    """The catalogue as its GSU sees it."""
    units = catalogue.units
    return KeySpace(units.item_unit, units.query_unit, catalogue.ranker.gsu.key_transform)


class HistorySearch:
    """Finds the K most relevant behaviours of a history, exactly or re-scored."""

    def __init__(
        self, bundle: Bundle, method: Method | Literal["auto"], overfetch: float | None = None, key_store: KeyStore | None = None
    ) -> None:
        self.bundle, self.key_store = bundle, key_store
        self.space = key_space(bundle) if key_store is None else key_store.space
        self._gate = bundle.config.gate
        self._fixed = None if method == "auto" else override(method, overfetch, self._gate)
        self._overfetch = overfetch
        if self._fixed is not None and self._fixed.method == "pq":
            # Codes that do not fit the codebooks are an error of loading, not of the first request.
            _ = self._codes

    def by(self, method: Method | None) -> "HistorySearch":
        """The same search by another method, None: as it is; tables are shared. ConfigError if it cannot serve the gate."""
        if method is None:
            return self
        other = copy(self)
        other._fixed = override(method, self._overfetch, self._gate)
        return other

    def top_k(self, history: Rows, probe: Probe, k: int) -> tuple[TopK, Choice]:
        """The K best of the history for each target, and how they were found."""
        choice, stored = self.choice(history, len(probe.query_Td), k), self._stores(history)
        with self._index(history, choice, stored) as index:
            return index.top_k(probe, k), choice

    def choice(self, history: Rows, num_targets: int, k: int, *, kept: bool = False) -> Choice:
        """How the K best for so many targets are to be found. kept: the history's packed keys are in memory."""
        situation = Situation(self._gate, num_targets, len(history.item_L), k, kept or self._stores(history))
        return self._fixed or choose(situation, self._overfetch)

    def _stores(self, history: Rows) -> bool:
        return self.key_store is not None and history.user_id is not None and self._gate != "target"

    @contextmanager
    def _index(self, history: Rows, choice: Choice, stored: bool) -> Iterator[Index]:
        keys = HistoryKeys(self.bundle, history)
        if stored and choice.method == "int8":
            assert self.key_store is not None
            assert history.user_id is not None
            with self.key_store.index(history.user_id, keys) as packed:
                yield RescoredIndex(packed, LookedUp(self.space, keys), choice.overfetch)
            return
        retriever = self._retrievers(choice.method)
        if choice.method in ("int8", "pq"):
            retriever = RescoredRetriever(retriever, self.space, choice.overfetch)
        yield retriever.index(keys[:])

    def _retrievers(self, method: Method) -> Retriever:
        match method:
            case "exact":
                return ExactRetriever(self.space)
            case "merged":
                return MergedRetriever(self.space)
            case "int8":
                return Int8Retriever(self.space, target_gate=self._gate == "target")
            case "pq":
                return self._codes

    @cached_property
    def _codes(self) -> PQRetriever:
        return PQRetriever(self.space, self.bundle.codebooks, self.bundle.codes)
