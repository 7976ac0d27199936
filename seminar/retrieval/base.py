"""The interface behind which every GSU scorer stands: a Retriever makes an Index of one history, an Index answers probes.

The GSU folds heads, biases and the query projection into one vector u a target (`seminar/gsu.py`), so that

    relevance(t, l) = sum_j weight(t, l, j) <u_t, unit[l, j] A_j>,   A_j = scale_j G_j          (SPEC: heads and G_j fold in)

holds exactly, with `unit` the L2-normalised PSU embedding of channel j (what the codebooks quantise) and `weight` the gate. A
retriever may approximate keys; everything else is exact.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from seminar.schema import NONE


@dataclass(frozen=True)
class Probe:
    """What T targets of one request ask of the history.

    query_Td: u of each target, float32. gate_TM: unnormalised gate exp(g_j(t)) where the gate depends on the target, else None.
    With it, weight(t, l, j) = gate[t, j] present[l, j] / sum_i gate[t, i] present[l, i]; without it weight is `Keys.weight_LM`.
    """

    query_Td: Float[Tensor, "T d"]
    gate_TM: Float[Tensor, "T M"] | None = None


@dataclass(frozen=True)
class Keys:
    """One user's history as the GSU sees it, oldest first: where its vectors are looked up, and how they are weighed.

    item_L, query_L: catalogue rows (query -1: none). present_LM: which channels exist. weight_LM: the behaviour-side gate
    (softmax over present channels), zero where missing; used when the probe carries no gate.
    """

    item_L: Int[Tensor, " L"]
    query_L: Int[Tensor, " L"]
    present_LM: Bool[Tensor, "L M"]
    weight_LM: Float[Tensor, "L M"]

    def __len__(self) -> int:
        return len(self.item_L)

    def __getitem__(self, rows: slice | Int[Tensor, " N"]) -> "Keys":
        return Keys(self.item_L[rows], self.query_L[rows], self.present_LM[rows], self.weight_LM[rows])


@runtime_checkable
class KeySource(Protocol):
    """A history whose keys are worked out for the rows that are asked for; `Keys` is one that has them all."""

    @property
    def item_L(self) -> Int[Tensor, " L"]: ...

    @property
    def query_L(self) -> Int[Tensor, " L"]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Int[Tensor, " N"]) -> Keys: ...


@dataclass(frozen=True)
class TopK:
    """The K most relevant behaviours of each target, the newest of equals.

    index_TK: positions in the history, increasing; -1 where fewer than K behaviours exist (always the last columns).
    relevance_TK: of those positions, -inf at -1.
    """

    index_TK: Int[Tensor, "T K"]
    relevance_TK: Float[Tensor, "T K"]


@runtime_checkable
class Index(Protocol):
    """One history made ready for search. Thread-safe: probing changes nothing."""

    def __len__(self) -> int:
        """Behaviours."""
        ...

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Relevance of every behaviour, as this method sees it."""
        ...

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best by this method's relevance; never padding."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """A way of finding the K behaviours of largest relevance. bytes_per_behaviour: what a scan reads of each behaviour."""

    name: str
    bytes_per_behaviour: float

    def index(self, keys: Keys) -> Index:
        """Make one history searchable: done once a request, or once a user where it is kept."""
        ...


def best(relevance_TN: Float[Tensor, "T N"], k: int, position_TN: Int[Tensor, "T N"] | None = None) -> TopK:
    """The k largest of each row, padded to k columns with (-1, -inf) where there are fewer.

    position_TN: where in the history each column stands, increasing in each row with -1 (never kept) anywhere; else column l is
    position l.
    """
    if position_TN is not None:
        relevance_TN = relevance_TN.masked_fill(position_TN < 0, -torch.inf)
    column_TK = newest_top_k(relevance_TN, min(k, relevance_TN.shape[1]))
    relevance_TK = relevance_TN.gather(1, column_TK)
    position_TK = column_TK if position_TN is None else position_TN.gather(1, column_TK)
    if position_TN is not None:
        # A row with fewer candidates than k kept some of its padding: it goes last.
        order_TK = (position_TK < 0).sort(dim=1, stable=True).indices
        position_TK, relevance_TK = position_TK.gather(1, order_TK), relevance_TK.gather(1, order_TK)
    short = (0, k - position_TK.shape[1])
    return TopK(pad(position_TK, short, value=NONE), pad(relevance_TK, short, value=-torch.inf))


def newest_top_k(relevance: Float[Tensor, "*N L"], k: int) -> Int[Tensor, "*N k"]:
    """Columns of the k largest values of each row, in increasing order; of equal values the last columns, the newest behaviours.

    Repeats of an item are equal in relevance but not in age, so which of them are kept must not depend on padding, on the path
    that scored them, or on how a library breaks ties. Costs a pass or two over the row beside the selection itself.
    """
    if not k:
        return relevance.new_empty((*relevance.shape[:-1], 0), dtype=torch.int64)
    least = relevance.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = relevance > least, relevance == least
    room = k - above.sum(-1, keepdim=True)
    newer = equal.flip(-1).cumsum(-1).flip(-1)
    return (above | (equal & (newer <= room))).nonzero()[:, -1].view(*relevance.shape[:-1], k)
