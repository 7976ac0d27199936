"""What is worth ranking for a user: items the towers find, items taken before, items taken under the same query.

    history     up to half of the candidates: taken most often, of equals the newest; where something is asked for, only what was
                taken under that query, by the user or often by others
    query       up to a quarter: taken most often under this query, by anybody
    retrieved   the rest: best inner products with the user's vector, out of the whole catalogue, new items included

The user tower reads items as tables of unit vectors, so a proposer needs neither encoder nor training data.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from safetensors.torch import load_file, save_file
from torch import Tensor

from seminar.batching import WindowBatch
from seminar.candidates.fusion import FusionEncoder, fusion_encoder
from seminar.candidates.index import ItemIndex
from seminar.candidates.mmsrec import NUM_MODALITIES, MMSRec, answers
from seminar.candidates.tower import Asked, most_read, user_vectors
from seminar.channels import ChannelSource, UnitTables, WithUnseenQueries, unit_tables
from seminar.config import RetrieverConfig
from seminar.schema import NONE

Source = Literal["history", "query", "retrieved"]
SOURCES: tuple[Source, ...] = ("history", "query", "retrieved")
FILES = ("index.faiss", "tower.safetensors", "proposer.json")
_UNIT = ("item_unit", "item_present", "query_unit", "query_present")


@dataclass(frozen=True)
class QueryItems:
    """item[offsets[q]:offsets[q+1]] are the items taken under query q in training, most often first."""

    offsets: Int[ndarray, " Q1"]
    item: Int[ndarray, " E"]

    @classmethod
    def count(
        cls, query_N: Int[ndarray, " N"], item_N: Int[ndarray, " N"], count_N: Int[ndarray, " N"], num_queries: int, most: int
    ) -> "QueryItems":
        """From how often (query, item) occurred; the `most` first of each query are kept, of equals the lower rows."""
        order = np.lexsort((item_N, -count_N, query_N))
        query, item = query_N[order], item_N[order]
        first = np.searchsorted(query, query)
        kept = np.arange(len(query)) - first < most
        offsets = np.searchsorted(query[kept], np.arange(num_queries + 1))
        return cls(offsets.astype(np.int64), item[kept].astype(np.int64))

    def of(self, query: int) -> Int[ndarray, " E"]:
        known = 0 <= query < len(self.offsets) - 1
        return self.item[self.offsets[query] : self.offsets[query + 1]] if known else self.item[:0]


@dataclass(frozen=True)
class Candidates:
    """Distinct catalogue rows. origin_CS: which of SOURCES hold each, also where another one brought it. score_C: s <user, item>
    + log q(item); NaN where the towers did not find it."""

    item_C: Int[ndarray, " C"]
    origin_CS: ndarray
    score_C: Float[ndarray, " C"]


@dataclass(frozen=True)
class Past:
    """A user's behaviours as catalogue rows, oldest first (query -1: none); request_L never decreases."""

    item_L: Int[ndarray, " L"]
    query_L: Int[ndarray, " L"]
    request_L: Int[ndarray, " L"]


@dataclass(frozen=True)
class Proposer:
    """User tower, item index and query table of one catalogue. Thread-safe."""

    config: RetrieverConfig
    fusion: FusionEncoder
    units: UnitTables
    project_query: Tensor
    index: ItemIndex
    query_items: QueryItems

    @torch.inference_mode()
    def user(self, past: Past, query: int = NONE, unseen_Xd: Float[ndarray, "X d"] | None = None) -> Float[ndarray, "1 d1"]:
        """Vector of a user now. query: catalogue row, -1 none, or num_queries + i for row i of `unseen_Xd` (text vectors)."""
        newest = slice(-most_read(self.config), None)
        item_L, request_L = past.item_L[newest], past.request_L[newest]
        length, width = len(item_L), max(len(item_L), 1)
        item_BL, request_BL = torch.zeros(1, width, dtype=torch.int64), torch.full((1, width), -1)
        item_BL[0, :length], request_BL[0, :length] = torch.tensor(item_L), torch.tensor(request_L)
        batch = WindowBatch(item_BL, torch.full_like(item_BL, NONE), request_BL, torch.tensor([length]))
        one = torch.zeros(1, dtype=torch.int64)
        asked = Asked(one, request_BL.amax(1) + 1, one + (query if self.config.query else NONE), one + length, item_BL)
        return user_vectors(answers(self.fusion, self._source(unseen_Xd), batch, asked))

    def propose(
        self,
        past: Past,
        query: int,
        count: int,
        unseen_Xd: Float[ndarray, "X d"] | None = None,
        sources: tuple[str, ...] = SOURCES,
    ) -> Candidates:
        """At most `count` candidates; fewer only where the catalogue is smaller. sources: which may name them."""
        of_query = self.query_items.of(query)
        named = {"history": past.item_L, "query": of_query, "retrieved": np.empty(0, np.int64)}
        fits_L = (past.query_L == query) | np.isin(past.item_L, of_query) if query != NONE else np.ones(len(past.item_L), bool)
        score = np.empty(0, np.float32)
        if "retrieved" in sources:
            rows, scores = self.index.search(self.user(past, query, unseen_Xd), count)
            found = rows[0] >= 0
            named["retrieved"], score = rows[0][found], scores[0][found]
        chosen = {
            "history": taken_before(past.item_L[fits_L])[: count // 2],
            "query": of_query[: count // 4],
            "retrieved": named["retrieved"],
        }
        item_N = np.concatenate([chosen[source] for source in sources])
        _, first = np.unique(item_N, return_index=True)
        item_C = item_N[np.sort(first)][:count]
        origin_CS = np.stack([np.isin(item_C, named[source]) if source in sources else item_C < 0 for source in SOURCES], 1)
        score_C = np.full(len(item_C), np.nan, np.float32)
        order = np.argsort(named["retrieved"])
        place = np.searchsorted(named["retrieved"], item_C[origin_CS[:, 2]], sorter=order)
        score_C[origin_CS[:, 2]] = score[order][place]
        return Candidates(item_C, origin_CS, score_C)

    def query_vectors(self, texts_Xe: Float[ndarray, "X e"]) -> Float[ndarray, "X d"]:
        """Text vectors of queries outside the catalogue in the towers' space."""
        return torch.nn.functional.normalize(torch.from_numpy(texts_Xe).float() @ self.project_query, dim=-1).numpy()

    def _source(self, unseen_Xd: Float[ndarray, "X d"] | None) -> ChannelSource:
        return self.units if unseen_Xd is None else WithUnseenQueries(self.units, torch.from_numpy(unseen_Xd), used=True)

    def save(self, folder: Path) -> None:
        """Write FILES."""
        tensors = {name: getattr(self.units, name) for name in _UNIT}
        tensors |= {f"fusion.{name}": value for name, value in self.fusion.state_dict().items()}
        tensors |= {"project_query": self.project_query}
        tensors |= {
            "query_offsets": torch.from_numpy(self.query_items.offsets),
            "query_item": torch.from_numpy(self.query_items.item),
        }
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, folder / "tower.safetensors")
        self.index.save(folder / "index.faiss")
        facts = {"retriever": self.config.model_dump(mode="json"), "index": self.index.facts}
        (folder / "proposer.json").write_text(json.dumps(facts, indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Proposer":
        """Read what `save` wrote."""
        facts, tensors = json.loads((folder / "proposer.json").read_text()), load_file(folder / "tower.safetensors")
        config = RetrieverConfig.model_validate(facts["retriever"])
        fusion = fusion_encoder(config, NUM_MODALITIES, torch.Generator())
        fusion.load_state_dict({n.removeprefix("fusion."): v for n, v in tensors.items() if n.startswith("fusion.")})
        index = ItemIndex.load(folder / "index.faiss", facts["index"])
        query_items = QueryItems(tensors["query_offsets"].numpy(), tensors["query_item"].numpy())
        units = UnitTables(*(tensors[name] for name in _UNIT))
        return cls(config, fusion.eval(), units, tensors["project_query"], index, query_items)

    @classmethod
    def of(cls, tower: MMSRec, index: ItemIndex, query_items: QueryItems) -> "Proposer":
        """From a trained tower and the index of its item vectors."""
        units = unit_tables(tower.channels)
        return cls(tower.config, tower.fusion.eval(), units, tower.channels.project_query.detach(), index, query_items)


def taken_before(item_L: Int[ndarray, " L"]) -> Int[ndarray, " D"]:
    """Distinct items of a history, most often taken first, of equals the newest."""
    newest_first = item_L[::-1]
    item_D, newest, count = np.unique(newest_first, return_index=True, return_counts=True)
    return item_D[np.lexsort((newest, -count))].astype(np.int64)
