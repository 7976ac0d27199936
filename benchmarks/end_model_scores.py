"""One request scored by the end model under every way of choosing the K behaviours that its ESU sees.

The request is encoded once: cross features and exact relevance do not depend on who chose. A target whose K behaviours are those
that exact retrieval keeps has the score of exact retrieval, bit for bit, and is not ranked again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from seminar.batching import Batch, Request, collate
from seminar.encoded import Encoded
from seminar.evaluate.evaluation import CELLS
from seminar.evaluate.metrics import rank_counts
from seminar.ranker import Ranker
from seminar.retrieval.base import Index, Keys, Probe, Retriever, best
from seminar.retrieval.exact import MergedIndex
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.recall import among_best
from seminar.retrieval.rescored import RescoredIndex
from seminar.schema import NONE
from seminar.sequences import Histories

EXACT, RANDOM, NEWEST, WHOLE = "exact", "random", "newest", "whole history"
RESCORED = "{}, re-scored"

Choice = Callable[[int], Int[Tensor, "T K"]]
"""K to the positions kept for each target, increasing; K is below the length of the history."""


@dataclass(frozen=True)
class Codec:
    """A retriever under the name it has in tables, and candidates a kept behaviour when they are re-scored."""

    name: str
    retriever: Retriever
    overfetch: float


@dataclass(frozen=True)
class Counts:
    """What metrics of one request are made of, for each K and way of choosing (`Contest.names`).

    above_KR, tied_KR: candidates scored above the positive, and level with it, of `others`. recall_KR: of the exact top-K, a mean
    over targets; repeats of an item are equally relevant, and any of them will do. same_KR: of the ten candidates that exact
    retrieval ranks best, the share still among the ten best.
    """

    above_KR: Int[ndarray, "K R"]
    tied_KR: Int[ndarray, "K R"]
    recall_KR: Float[ndarray, "K R"]
    same_KR: Float[ndarray, "K R"]
    others: int


@dataclass(frozen=True)
class Contest:
    """What is compared: codecs on their own and re-scored, beside exact retrieval, two floors and the whole history.

    The ranker's gate must not be the target's: keys are merged.
    """

    ranker: Ranker
    space: KeySpace
    codecs: Sequence[Codec]
    ks: Sequence[int]
    max_history: int

    @property
    def names(self) -> list[str]:
        """Ways of choosing in the order of figures; exact retrieval is the first."""
        return [EXACT, *(name for c in self.codecs for name in (c.name, RESCORED.format(c.name))), RANDOM, NEWEST, WHOLE]

    @torch.inference_mode()
    def counts(self, histories: Histories, request: Request, place: int, generator: np.random.Generator) -> Counts:
        """Score all candidates of a request once a K and way of choosing; place: which of them is the positive."""
        scorer = RequestScorer(self.ranker, collate(histories, [request], self.max_history))
        length, names = scorer.length, self.names
        whole_T = scorer.scores(scorer.whole_TL[None])[0]
        choices = self._choices(scorer, generator) if length > min(self.ks) else []
        score_KRT, recall_KR = [], np.ones((len(self.ks), len(names)))
        for column, k in enumerate(self.ks):
            if length <= k:
                score_KRT.append(whole_T.expand(len(names), -1))
                continue
            kept_RTK = torch.stack([choose(k) for choose in choices])
            score_KRT.append(torch.cat([scorer.scores(kept_RTK), whole_T[None]]))
            recall_KR[column, :-1] = scorer.recall(kept_RTK)
        counted = [[rank_counts(score_T.numpy(), place) for score_T in score_RT] for score_RT in score_KRT]
        above_KR, tied_KR = np.moveaxis(np.array(counted, np.int64), 2, 0)
        same_KR = np.stack([_same_best(score_RT) for score_RT in score_KRT])
        return Counts(above_KR, tied_KR, recall_KR, same_KR, len(request.item_T) - 1)

    def _choices(self, scorer: "RequestScorer", generator: np.random.Generator) -> list[Choice]:
        """Every way of choosing but the whole history, each index made once."""
        shape = scorer.truth_TL.shape
        floats = MergedIndex(self.space.merged(scorer.keys))
        searches: list[Index] = []
        for codec in self.codecs:
            index = codec.retriever.index(scorer.keys)
            searches += [index, RescoredIndex(index, floats, codec.overfetch)]
        lots_TL = torch.from_numpy(generator.random(shape, np.float32))
        newer_TL = torch.arange(shape[1], dtype=torch.float32).expand(shape)
        return [
            lambda k: best(scorer.truth_TL, k).index_TK,
            *(partial(_searched, index, scorer.probe) for index in searches),
            lambda k: best(lots_TL, k).index_TK,
            lambda k: best(newer_TL, k).index_TK,
        ]


def _same_best(score_RT: Float[Tensor, "R T"], count: int = 10) -> Float[ndarray, " R"]:
    """Share of the first row's best candidates that are among the best of each row."""
    best_RN = score_RT.topk(min(count, score_RT.shape[1]), dim=1).indices
    chosen_RT = torch.zeros(score_RT.shape, dtype=torch.bool).scatter_(1, best_RN, True)
    return (chosen_RT & chosen_RT[:1]).sum(1).numpy() / best_RN.shape[1]


def _searched(index: Index, probe: Probe, k: int) -> Int[Tensor, "T K"]:
    return index.top_k(probe, k).index_TK


class RequestScorer:
    """A request encoded once: what retrievers are asked, exact relevance, and scores for any kept behaviours."""

    def __init__(self, ranker: Ranker, batch: Batch) -> None:
        self._ranker, self._batch = ranker, batch
        self._encoded: Encoded = ranker.encode(batch)
        self._cross_BTF, self._pooled_BSd = ranker.cross(batch), ranker.pooled(batch, self._encoded)
        self.length = int(batch.length_B[0])
        self.truth_TL = ranker.relevance(self._encoded)[0]
        gated, history_L = self._encoded.gated, self._encoded.history_BL[0]
        self.probe: Probe = ranker.gsu.probe(self._encoded.target_BTd[0], gated.gate_logit_NM[self._encoded.target_BT[0]])
        present_LM, weight_LM = gated.pairs.present_NM[history_L], gated.weight_NM[history_L]
        self.keys = Keys(batch.item_BL[0], batch.query_BL[0], present_LM, weight_LM)

    @property
    def whole_TL(self) -> Int[Tensor, "T L"]:
        """Every behaviour kept; one column of padding where there is none."""
        position_L = torch.where(self._batch.mask_BL[0], torch.arange(self.truth_TL.shape[1]), NONE)
        return position_L.expand(len(self.truth_TL), -1)

    def scores(self, kept_RTK: Int[Tensor, "R T K"]) -> Float[Tensor, "R T"]:
        """Logits under the targets' tasks for each of R choices. What differs from the first choice alone is ranked beside it."""
        differs_RT = (kept_RTK != kept_RTK[:1]).any(-1)
        first_T = torch.arange(kept_RTK.shape[1])
        target_N = torch.cat([first_T, differs_RT.nonzero()[:, 1]])
        kept_NK = torch.cat([kept_RTK[0], kept_RTK[differs_RT]])
        rows = max(CELLS // max(kept_NK.shape[1], 1), 1)
        parts = zip(target_N.split(rows), kept_NK.split(rows), strict=True)
        logit_N = torch.cat([self._rank(*part) for part in parts])
        score_RT = logit_N[: len(first_T)].repeat(len(kept_RTK), 1)
        score_RT[differs_RT] = logit_N[len(first_T) :]
        return score_RT

    def recall(self, kept_RTK: Int[Tensor, "R T K"]) -> Float[ndarray, " R"]:
        """Share of the exact top-K that each of R choices holds, a mean over targets."""
        hit_TL = among_best(self.truth_TL, kept_RTK.shape[2]).double()
        return hit_TL.expand(len(kept_RTK), -1, -1).gather(2, kept_RTK).mean((1, 2)).numpy()

    def _rank(self, target_N: Int[Tensor, " N"], kept_NK: Int[Tensor, "N K"]) -> Float[Tensor, " N"]:
        batch = self._batch
        columns = {name: getattr(batch, name)[:, target_N] for name in ("item_BT", "query_BT", "label_BT", "task_BT")}
        chosen = replace(batch, **columns, target_count_B=torch.tensor([len(target_N)]))
        encoded = replace(self._encoded, target_BT=self._encoded.target_BT[:, target_N])
        ranked = self._ranker.rank(chosen, encoded, kept_NK[None], self._cross_BTF[:, target_N], self._pooled_BSd)
        return ranked.logit_BTS[0].gather(-1, chosen.task_BT[0][:, None]).squeeze(-1)
