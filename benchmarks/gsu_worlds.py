"""Catalogues and histories that retrievers are compared on: two synthetic regimes, and a trained model of real purchases.

gaussian    unit vectors without any structure: the hardest case for codes
clustered   200 clusters a channel, shared by an item's channels: what real embeddings are nearer to
journey     PSU embeddings of the Complete Journey model; requests of its test split, histories of households laid end to end
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import normalize

from seminar.artifacts import Store
from seminar.channels import ChannelEncoder, UnitTables, encode_pairs, unit_tables
from seminar.codes.codebook import CatalogueCodes, Codebooks, Stamp, encode_block
from seminar.codes.codebook_fit import fit
from seminar.config import CodebookConfig, load_settings
from seminar.evaluate.code_recall import probe_and_keys
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import held_out_pairs, ranking_request
from seminar.ranker import Ranker, load_ranker
from seminar.retrieval.base import Keys, Probe
from seminar.retrieval.key_space import KeySpace
from seminar.schema import ATTRIBUTES, IMAGE, NUM_CHANNELS, QUERY, TEXT
from seminar.sequences import Histories, read_histories

DIM, ITEMS, QUERIES, CLUSTERS = 64, 20_000, 2_000, 200
NAMES = ("gaussian", "clustered", "journey")


@dataclass(frozen=True)
class World:
    """One catalogue. probes: 100 targets each; target_unit_TMd: channels of the first one's targets, where they are drawn.

    pool: behaviours to draw histories from, in order.
    """

    name: str
    space: KeySpace
    units: UnitTables
    probes: Sequence[Probe]
    pool: Keys
    target_unit_TMd: Tensor | None = None

    def history(self, length: int) -> Keys:
        """The newest `length` behaviours; beyond the pool it begins again."""
        rows = torch.arange(-length, 0) % len(self.pool)
        return self.pool[rows]

    def probe(self, targets: int, number: int = 0) -> Probe:
        """The first targets of one request."""
        return Probe(self.probes[number % len(self.probes)].query_Td[:targets].contiguous())

    @cached_property
    def codes_8(self) -> tuple[Codebooks, CatalogueCodes]:
        """256 centroids: 64 bytes a behaviour."""
        return fit_codes(self.units, 256, "opq")

    @cached_property
    def codes_4(self) -> tuple[Codebooks, CatalogueCodes]:
        """16 centroids: 32 bytes a behaviour."""
        return fit_codes(self.units, 16, "opq")

    @cached_property
    def unrotated_8(self) -> tuple[Codebooks, CatalogueCodes]:
        """256 centroids as the paper fits them."""
        return fit_codes(self.units, 256, "none")


def fit_codes(units: UnitTables, centroids: int, rotation: Literal["none", "opq"] = "opq") -> tuple[Codebooks, CatalogueCodes]:
    """Codebooks of all channels, 16 sub-spaces each, and the catalogue's codes."""
    item, item_present = units.item_unit.numpy(), units.item_present.numpy()
    query, query_present = units.query_unit.numpy(), units.query_present.numpy()
    samples = [query[query_present], *(item[item_present[:, c], c][:65_536] for c in range(NUM_CHANNELS - 1))]
    stamp = Stamp(f"benchmark-{centroids}-{rotation}", "benchmark")
    books, _ = fit(samples, CodebookConfig(num_centroids=centroids, rotation=rotation), stamp)
    item_codes, _ = encode_block(books, (TEXT, IMAGE, ATTRIBUTES), item, item_present)
    query_codes, _ = encode_block(books, (QUERY,), query[:, None], query_present[:, None])
    return books, CatalogueCodes(item_codes, query_codes[:, 0], item_present, query_present, stamp)


@lru_cache(maxsize=1)
def open_world(name: str, config: Path) -> World:
    """A world by name; the real one needs the jobs of `config` done up to fit-codebooks."""
    return journey(config) if name == "journey" else synthetic(name)


def synthetic(name: str) -> World:
    """All channels present, equal weights; targets are drawn like items."""
    generator = torch.Generator().manual_seed(0)
    # What an item is about is shared by its channels; each channel has its own centres.
    centres = torch.randn(NUM_CHANNELS, CLUSTERS, DIM, generator=generator)

    def vectors(count: int, cluster: Tensor, channel: int) -> Tensor:
        noise = torch.randn(count, DIM, generator=generator)
        return normalize(noise if name == "gaussian" else centres[channel][cluster] + 0.6 * noise, dim=-1)

    item_cluster = torch.randint(CLUSTERS, (ITEMS,), generator=generator)
    item = torch.stack([vectors(ITEMS, item_cluster, channel) for channel in (TEXT, IMAGE, ATTRIBUTES)], 1)
    query = vectors(QUERIES, torch.arange(QUERIES) % CLUSTERS, QUERY)
    everything = torch.ones(ITEMS, 3, dtype=torch.bool), torch.ones(QUERIES, dtype=torch.bool)
    units = UnitTables(item, everything[0], query, everything[1])
    space = KeySpace(item, query, torch.eye(DIM).repeat(NUM_CHANNELS, 1, 1))
    rows = torch.randint(ITEMS, (1 << 17,), generator=generator)
    # The query of a behaviour asks for what the item is about.
    near = item_cluster[rows] + CLUSTERS * torch.randint(QUERIES // CLUSTERS, rows.shape, generator=generator)
    present = torch.ones(len(rows), NUM_CHANNELS, dtype=torch.bool)
    pool = Keys(rows, near, present, present / NUM_CHANNELS)
    drawn = []
    for _ in range(4):
        cluster = torch.randint(CLUSTERS, (100,), generator=generator)
        drawn.append(torch.stack([vectors(100, cluster, channel) for channel in range(NUM_CHANNELS)], 1))
    return World(name, space, units, [Probe(channels.mean(1)) for channels in drawn], pool, drawn[0])


@torch.no_grad()
def journey(config: Path) -> World:
    """Requests and histories of the trained model of `config`."""
    settings = load_settings(config)
    store = Store(settings.workdir)
    ranker, pairs = load_ranker(store.open("model"), store.open("vectors")), store.open("pairs")
    assert isinstance(ranker.channels, ChannelEncoder)
    units = unit_tables(ranker.channels)
    shard = sorted(name for name in pairs.manifest.files if name.startswith("shards/"))[0]
    histories = read_histories(pq.read_table(pairs.file(shard)))
    items = ItemPool.of(pq.read_table(pairs.file("items.parquet")))
    held = sorted(held_out_pairs(histories, settings.evaluate), key=lambda pair: (-pair.start, pair.row))[:8]
    drawn = [ranking_request(histories, items, pair, settings.evaluate) for pair in held]
    probes = [probe_and_keys(ranker, units, histories, request)[0] for request, _ in filter(None, drawn)]
    space = KeySpace(units.item_unit, units.query_unit, ranker.gsu.key_transform)
    return World("journey", space, units, probes, _all_behaviours(ranker, units, histories))


def _all_behaviours(ranker: Ranker, units: UnitTables, histories: Histories) -> Keys:
    """Every household of the shard, one after the other."""
    item, query = (torch.from_numpy(column.astype(np.int64)) for column in (histories.item, histories.query))
    gated = [ranker.gsu.gated(encode_pairs(units, *part)) for part in zip(item.split(8192), query.split(8192), strict=True)]
    present = torch.cat([part.pairs.present_NM for part in gated])
    return Keys(item, query, present, torch.cat([part.weight_NM for part in gated]))
