"""The one interface behind which every GSU scorer stands.

The GSU folds heads, biases, G_j, channel scales and the target's own gate into one *probe* vector a channel, so that

    relevance(t, l) = sum_j weight(t, l, j) <probe[t, j], unit[l, j]>                      (SPEC: heads and G_j fold in)

holds exactly, with `unit` the L2-normalised PSU embedding of channel j (what the codebooks quantise) and `weight` the
behaviour's gate. A retriever may approximate `unit`; everything else is exact.
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

    vector_TMd: per-channel query vectors, float32.
    gate_TM: unnormalised gate exp(g_j(t)) where the gate depends on the target, else None. With it,
        weight(t, l, j) = gate[t, j] present[l, j] / sum_i gate[t, i] present[l, i]; without it weight is `Keys.weight_LM`.
    """

    vector_TMd: Float[Tensor, "T M d"]
    gate_TM: Float[Tensor, "T M"] | None = None


@dataclass(frozen=True)
class Keys:
    """One user's history as the GSU sees it: unit vectors of each channel, or where to look them up.

    item_L, query_L: catalogue rows (query -1: none). present_LM: which channels exist. weight_LM: the behaviour-side gate
    (softmax over present channels), zero where missing; used when the probe carries no gate.
    """

    item_L: Int[Tensor, " L"]
    query_L: Int[Tensor, " L"]
    present_LM: Bool[Tensor, "L M"]
    weight_LM: Float[Tensor, "L M"]


@dataclass(frozen=True)
class TopK:
    """Positions in the history, newest-first among equals is NOT promised; best relevance first.

    index_TK: -1 where fewer than K behaviours exist (always the last columns). relevance_TK: -inf there.
    """

    index_TK: Int[Tensor, "T K"]
    relevance_TK: Float[Tensor, "T K"]


@runtime_checkable
class Retriever(Protocol):
    """Finds the K behaviours of largest relevance for each target; never returns padding."""

    name: str
    bytes_per_behaviour: float

    def relevance(self, probe: Probe, keys: Keys) -> Float[Tensor, "T L"]:
        """Exact or approximate relevance of every behaviour."""
        ...

    def top_k(self, probe: Probe, keys: Keys, k: int) -> TopK:
        """The K best, re-scored exactly where the method over-fetches."""
        ...


def fold_gate(probe: Probe, keys: Keys) -> tuple[Float[Tensor, "T M d"], Float[Tensor, "L M"], Float[Tensor, "T L"] | None]:
    """Both gate modes as one form: relevance(t, l) = scale[t, l] sum_j weight[l, j] <vector[t, j], unit[l, j]>; no scale is 1.

    A target's gate moves into its vectors and leaves presence as the weight and 1 / sum_i gate[t, i] present[l, i] as the scale
    (0 for a behaviour without any channel).
    """
    if probe.gate_TM is None:
        return probe.vector_TMd, keys.weight_LM, None
    weight_LM = keys.present_LM.to(probe.vector_TMd.dtype)
    total_TL = probe.gate_TM @ weight_LM.T
    scale_TL = torch.where(total_TL > 0, 1 / total_TL, 0.0)
    return probe.vector_TMd * probe.gate_TM[..., None], weight_LM, scale_TL


def best(relevance_TN: Float[Tensor, "T N"], k: int, position_TN: Int[Tensor, "T N"] | None = None) -> TopK:
    """The k largest of each row, padded to k columns with (-1, -inf) where there are fewer.

    position_TN: where in the history each column stands, when the columns are candidates; else column l is position l.
    """
    if position_TN is not None:
        position_TN, order_TN = position_TN.sort(dim=1)
        relevance_TN = relevance_TN.gather(1, order_TN)
    column_TK = newest_top_k(relevance_TN, min(k, relevance_TN.shape[1]))
    relevance_TK, order_TK = relevance_TN.gather(1, column_TK).sort(dim=1, descending=True, stable=True)
    column_TK = column_TK.gather(1, order_TK)
    position_TK = column_TK if position_TN is None else position_TN.gather(1, column_TK)
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
