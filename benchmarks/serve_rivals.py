"""What the service is measured beside, as Serve deployments of their own: an endpoint that returns a constant, and what a user
would write first: FastAPI and torch, exact attention of the targets over the whole history.

The rival is written to be fast: histories wait in memory as rows of embedding tables, all targets are one batch, attention is
torch's own fused kernel, nothing is recorded for gradients. Its weights are random: it is timed, its scores mean nothing.
"""

import itertools
from typing import Any, Literal, get_args

import numpy as np
import torch
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from jaxtyping import Float, Int
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from torch import Tensor, nn
from torch.nn import functional

from seminar.bundle import Bundle
from seminar.channels import UnitTables
from seminar.history.lmdb_store import LMDBHistoryStore
from seminar.history.store import CatalogueRows
from seminar.schema import NUM_CHANNELS

Inputs = Literal["id", "channels"]
"""id: one learned vector an item and a query. channels: SEMINAR's four vectors of a behaviour, gated and projected."""


class FullAttention(nn.Module):
    """Multi-head target attention over all L behaviours and an MLP, with the widths of the bundle's model."""

    def __init__(self, bundle: Bundle, inputs: Inputs) -> None:
        super().__init__()
        config = bundle.config
        dim, self.heads = config.dim, config.num_heads
        self.units: UnitTables | None = bundle.units if inputs == "channels" else None
        if inputs == "id":
            self.item = nn.Embedding(len(bundle.item_ids), dim)
            self.query = nn.Embedding(len(bundle.query_ids) + 1, dim)
        self.gate = nn.Parameter(torch.zeros(NUM_CHANNELS))
        self.merge = nn.Linear(NUM_CHANNELS * dim, dim, bias=False)
        self.to_query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_key_value = nn.Linear(dim, 2 * dim)
        widths = [3 * dim, *config.hidden]
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    @torch.inference_mode()
    def forward(self, item_L: Int[Tensor, " L"], query_L: Int[Tensor, " L"], item_T: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
        """Probability of each target."""
        behaviour, target = self._embed(item_L, query_L), self._embed(item_T, torch.full_like(item_T, -1))
        query = self._split(self.to_query(target))
        key, value = (self._split(part) for part in self.to_key_value(behaviour).chunk(2, -1))
        attended = functional.scaled_dot_product_attention(query, key, value)
        interest = self.out(attended.transpose(1, 2).reshape(len(target), -1))
        return torch.sigmoid(self.mlp(torch.cat([interest, target, interest * target], -1))[:, 0])

    def _embed(self, item_N: Tensor, query_N: Tensor) -> Float[Tensor, "N d"]:
        if self.units is None:
            return self.item(item_N) + self.query(query_N + 1)
        unit_i, _ = self.units.unit_items(item_N)
        unit_q, _ = self.units.unit_queries(query_N)
        weight_M = self.gate.softmax(0)
        return self.merge(torch.cat([unit_q * weight_M[0], (unit_i * weight_M[1:, None]).flatten(1)], 1))

    def _split(self, rows: Float[Tensor, "N d"]) -> Float[Tensor, "1 H N h"]:
        return rows.view(1, len(rows), self.heads, -1).transpose(1, 2)


class Wanted(BaseModel):
    item_id: str


class Request(BaseModel):
    user_id: str
    targets: list[Wanted]


rival, trivial = FastAPI(), FastAPI()


@serve.ingress(rival)
class Rival:
    """Both inputs behind one ingress, one at a time under load; threads of torch and workers can be set."""

    def __init__(self, bundle: str, history: str) -> None:
        self._bundle = Bundle.load(bundle)
        self._models = {inputs: FullAttention(self._bundle, inputs).eval() for inputs in get_args(Inputs)}
        self._histories: dict[str, tuple[Tensor, Tensor]] = {}
        self._store = LMDBHistoryStore(history)
        self._items = CatalogueRows(self._store, "items", self._bundle.item_row)
        self._queries = CatalogueRows(self._store, "queries", self._bundle.query_row)
        self._limit, self._threads = CapacityLimiter(1), 1

    @rival.post("/{inputs}/score")
    async def score(self, inputs: Inputs, request: Request) -> dict[str, list[float]]:
        scores = await to_thread.run_sync(self._score, inputs, request, limiter=self._limit)
        return {"scores": scores}

    @rival.get("/threads/{threads}/{workers}")
    async def set_threads(self, threads: int, workers: int) -> None:
        """threads: torch's, for each of `workers` requests at once."""
        self._threads, self._limit.total_tokens = threads, workers

    def _score(self, inputs: Inputs, request: Request) -> list[float]:
        # A number of the calling thread, which a worker that has run torch before keeps.
        torch.set_num_threads(self._threads)
        item_T = self._bundle.item_row([target.item_id for target in request.targets])
        return self._models[inputs](*self._history(request.user_id), torch.from_numpy(item_T)).tolist()

    def _history(self, user: str) -> tuple[Tensor, Tensor]:
        """Rows of the tables, in memory from a user's first request on."""
        if user not in self._histories:
            stored = self._store.read(user)
            item_L, query_L = (
                torch.from_numpy(np.ascontiguousarray(column))
                for column in (self._items(stored.item_L), self._queries(stored.query_L))
            )
            self._histories[user] = item_L, query_L
        return self._histories[user]


@serve.ingress(trivial)
class Trivial:
    """The least that an HTTP service on Serve can do."""

    @trivial.get("/")
    async def constant(self) -> dict[str, str]:
        return {"status": "ok"}

    @trivial.get("/replica")
    async def replica(self) -> str:
        """Which replica a request reached."""
        return serve.get_replica_context().replica_tag


def build_rival(args: dict[str, Any]) -> Application:
    """args: arguments of Rival."""
    return serve.deployment(name="Rival")(Rival).bind(**args)


def build_trivial(_: dict[str, Any]) -> Application:
    return serve.deployment(name="Trivial")(Trivial).bind()
