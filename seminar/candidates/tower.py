"""What two towers have in common: scores, the loss over the whole catalogue, and what of a window asks for a prediction.

    log p(item | user, query) = s <user, item> + log q(item) + constant,    user and item unit vectors, s = 1 / tau

q is the item's popularity (`prior.py`): counted, so that the towers learn what the user adds to it, and an item that nobody took
yet has its place. One request asks once for each distinct query it holds; whatever was taken in it is what is predicted.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor, nn

from seminar.batching import WindowBatch
from seminar.candidates.prior import log_prior
from seminar.channels import VectorTables
from seminar.config import RetrieverConfig
from seminar.rows import distinct
from seminar.sampled_softmax import sampled_softmax
from seminar.schema import NONE

TAU = 0.05
"""Temperature before training (MMSRec)."""


@dataclass(frozen=True)
class Asked:
    """The A distinct (window, request, query) of a batch of windows, and which of them each behaviour answers (-1 padding).

    seen_A: behaviours of the window before the request.
    """

    window_A: Int[Tensor, " A"]
    request_A: Int[Tensor, " A"]
    query_A: Int[Tensor, " A"]
    seen_A: Int[Tensor, " A"]
    answer_BL: Int[Tensor, "B L"]

    @classmethod
    def of(cls, batch: WindowBatch, query_BL: Int[Tensor, "B L"]) -> "Asked":
        """query_BL: the query that each behaviour is predicted with, -1 none."""
        mask = batch.mask_BL
        window = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
        requests, queries = int(batch.request_BL.max()) + 1, int(query_BL.max()) + 2
        code = (window * requests + batch.request_BL) * queries + query_BL + 1
        asked, answer_BL = distinct(torch.where(mask, code, -1))
        window_A, request_A = asked // queries // requests, asked // queries % requests
        seen_A = ((batch.request_BL[window_A] < request_A[:, None]) & mask[window_A]).sum(1)
        return cls(window_A, request_A, asked % queries - 1, seen_A, answer_BL)


class DualTower(nn.Module, ABC):
    """A user tower and an item tower that meet in one space."""

    log_prior: Tensor
    seen: Tensor

    def __init__(self, config: RetrieverConfig, tables: VectorTables, generator: torch.Generator) -> None:
        """generator: draws the weights."""
        super().__init__()
        self.config = config
        self.uniform_negatives, self.query_dropout = 512, 0.0
        self.log_temperature = nn.Parameter(torch.tensor(math.log(TAU)))
        self.register_buffer("log_prior", torch.from_numpy(log_prior(tables.train_count)), persistent=False)
        self.register_buffer("seen", torch.from_numpy(np.flatnonzero(tables.train_count)), persistent=False)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """s: what cosines are multiplied by."""
        return (-self.log_temperature).exp()

    def prior(self, rows: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """What is added to an item's score, whoever asks."""
        return self.log_prior[rows] if self.config.popularity else torch.zeros_like(self.log_prior[rows])

    @abstractmethod
    def items(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        """Item tower: unit vectors of catalogue rows."""

    @abstractmethod
    def users(self, batch: WindowBatch, asked: Asked) -> Float[Tensor, "A d"]:
        """User tower: a unit vector for each question, from behaviours of earlier requests of its window alone."""

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Sampled softmax of each behaviour's item over the catalogue, its request's other items left out.

        Negatives of a window are the items of the batch's other windows and `uniform_negatives` of the items seen in training
        (mixed negative sampling, Yang et al. 2020). What is subtracted (logQ, Bengio and Senecal 2008) is the log of the chance
        that an item is among them. A window's own items are no sample of what its user does not take: they compete only where
        another window or the draw brought them too.
        """
        mask = batch.mask_BL
        asked = Asked.of(batch, self._shown_queries(batch))
        taken, taken_row = distinct(batch.item_BL[mask])
        drawn = self.seen[torch.randint(len(self.seen), (self.uniform_negatives,), device=taken.device)]
        item_C, row = distinct(torch.cat([taken, drawn]))
        unit_Cd, positive_N = self.items(item_C), row[taken_row]
        others = int(mask.sum()) * (1 - 1 / len(mask))
        bias_C = self.prior(item_C) - self._log_chance(item_C, others)
        answer_N = asked.answer_BL[mask]
        user_Nd = self.users(batch, asked)[answer_N]
        excluded_NC = taken_together(asked, answer_N, positive_N, len(item_C))
        window_N = asked.window_A[answer_N]
        excluded_NC |= ~brought_by_others(window_N, positive_N, row[len(taken) :], len(mask), len(item_C))[window_N]
        logit_N = self.scale * (user_Nd * unit_Cd[positive_N]).sum(-1) + bias_C[positive_N]
        next_ = sampled_softmax(user_Nd, logit_N, unit_Cd, excluded_NC, self.scale, bias_C).mean()
        return {"total": next_, "next": next_}

    def _shown_queries(self, batch: WindowBatch) -> Int[Tensor, "B L"]:
        if not self.config.query:
            return torch.full_like(batch.query_BL, NONE)
        hidden = torch.rand(batch.query_BL.shape, device=batch.query_BL.device) < self.query_dropout
        return torch.where(hidden & self.training, NONE, batch.query_BL)

    def _log_chance(self, item_C: Int[Tensor, " C"], taken: float) -> Float[Tensor, " C"]:
        """Log of the chance that an item is a candidate: of `taken` behaviours or of the uniform draws, at least one is of it."""
        share = self.log_prior[item_C].double().exp()
        uniform = self.uniform_negatives * math.log1p(-1 / max(len(self.seen), 2))
        chance = -torch.expm1(taken * torch.log1p(-share.clamp_max(1 - 1e-9)) + uniform)
        # One window alone, and nothing drawn: there is no negative, and no number to subtract.
        return chance.clamp_min(1e-12).log().float()


def taken_together(
    asked: Asked, answer_N: Int[Tensor, " N"], positive_N: Int[Tensor, " N"], candidates: int
) -> Bool[Tensor, "N C"]:
    """Which candidates were taken in the request that each of N behaviours belongs to: positives, never negatives."""
    request, request_A = distinct(asked.window_A * (int(asked.request_A.max()) + 1) + asked.request_A)
    member = torch.zeros(len(request), candidates, dtype=torch.bool, device=answer_N.device)
    request_N = request_A[answer_N]
    member[request_N, positive_N] = True
    return member[request_N]


def brought_by_others(
    window_N: Int[Tensor, " N"], taken_N: Int[Tensor, " N"], drawn_U: Int[Tensor, " U"], windows: int, candidates: int
) -> Bool[Tensor, "B C"]:
    """Which of C candidates are there for each window whatever its own N behaviours took: another window's, or drawn."""
    held_BC = torch.zeros(windows, candidates, dtype=torch.bool, device=window_N.device)
    held_BC[window_N, taken_N] = True
    drawn_C = torch.zeros(candidates, dtype=torch.bool, device=window_N.device)
    drawn_C[drawn_U] = True
    return (held_BC.sum(0) - held_BC.int() > 0) | drawn_C


@torch.no_grad()
def item_vectors(tower: DualTower, rows: Int[ndarray, " N"] | None = None, block: int = 4096) -> Float[ndarray, "N d1"]:
    """What a user vector is multiplied by: [s item, log q] of the catalogue items, or of some rows of it, float32."""
    tower.eval()
    device = tower.log_prior.device
    chosen = torch.arange(len(tower.log_prior)) if rows is None else torch.from_numpy(rows)
    parts = [torch.cat([tower.items(p) * tower.scale, tower.prior(p)[:, None]], 1) for p in chosen.to(device).split(block)]
    return torch.cat(parts).cpu().numpy()


def most_read(config: RetrieverConfig) -> int:
    """Newest behaviours that a question reads: a training window less the one it asks for; no position after it was trained."""
    return config.window - 1


def user_vectors(user_Nd: Float[Tensor, "N d"]) -> Float[ndarray, "N d1"]:
    """The other factor: [user, 1], float32."""
    unit = user_Nd.detach().cpu().numpy()
    return np.concatenate([unit, np.ones((len(unit), 1), np.float32)], 1)
