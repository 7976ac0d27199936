"""A night's candidate artefacts: pairs, vectors, drift, codebooks, index, bundle. Nothing here is made current.

Each function is one step of workflows/refresh.py: it finds its own finished or interrupted artefact by what that is made from,
so it may be repeated, and returns what the ledger keeps.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import pyarrow.parquet as pq
import ray
from jaxtyping import Bool, UInt8
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.bundle import assemble
from seminar.codes.codebook import Codebooks, load_codes
from seminar.config import Settings
from seminar.evaluate.negatives import ItemPool
from seminar.nightly.ledger import Ledger
from seminar.nightly.refresh import Probe, choose_probes
from seminar.nightly.strain import Strain, strain
from seminar.schema import CHANNELS
from seminar.sequences import read_histories
from workflows import build_index, embed, fit_codebooks, prepare
from workflows.fit_codebooks import FILE, SIDES, Source, row_blocks


@dataclass(frozen=True)
class Candidate:
    """What one night makes beside what is in use: `base` is what it continues, `made` what its finished steps gave."""

    settings: Settings
    store: Store
    ledger: Ledger

    def base(self, kind: str) -> Artifact:
        return self.store.open(kind, self.ledger.record.base[kind])

    def made(self, kind: str) -> Artifact:
        return self.store.open(kind, self.ledger.outcome(kind)["version"])

    def pairs(self) -> dict[str, Any]:
        base = self.base("pairs")
        pairs = prepare.run(self.settings, self.store, base, current=False)
        was, now = base.manifest.metrics, pairs.manifest.metrics
        new = {count: now[count] - was[count] for count in ("users", "behaviours", "exposures", "items", "queries")}
        return {"version": pairs.version, "new": new, "origins": now["origins"], "quarantined": now["quarantined"]}

    def nothing_new(self) -> bool:
        """The same log under the same settings as the bundle in use was made from."""
        was, now = self.base("pairs").manifest.config, self.made("pairs").manifest.config
        return all(was[key] == now[key] for key in ("data", "prepare", "source"))

    def vectors(self) -> dict[str, Any]:
        vectors = embed.run(self.settings, self.store, pairs=self.made("pairs"), current=False)
        metrics = vectors.manifest.metrics
        return {"version": vectors.version, **{name: metrics[name] for name in ("reused", "failed", "coverage")}}

    def drift(self) -> dict[str, Any]:
        """Strain of the new catalogue on the codebooks in use, by channel; blocks of rows over the cluster."""
        codebooks, codes = load_codes(self.base("codebooks").file(FILE))
        source = Source(self.store.root.resolve(), self.ledger.record.base["model"], self.made("vectors").version)
        tables = source.tables()
        sides = {
            "queries": (tables.num_queries, codes.query_code_QS[:, None], codes.query_present_Q[:, None]),
            "items": (tables.num_items, codes.item_code_I3S, codes.item_present_I3),
        }
        task, held = _strain.options(num_cpus=self.settings.ray.cpus_per_worker), ray.put(codebooks)
        found: dict[str, Any] = {}
        for side, (num_rows, code_OKS, had_OK) in sides.items():
            spans = row_blocks(num_rows)
            refs = [task.remote(source, held, side, rows, code_OKS[_slice(rows)], had_OK[_slice(rows)]) for rows in spans]
            totals = [reduce(add, column) for column in zip(*ray.get(refs), strict=True)]
            found |= {CHANNELS[channel]: total.summary() for channel, total in zip(SIDES[side], totals, strict=True)}
        return {"channels": found}

    def codebooks(self) -> dict[str, Any]:
        warm, model = self.base("codebooks"), self.base("model")
        made = fit_codebooks.run(self.settings, self.store, warm, model=model, vectors=self.made("vectors"), current=False)
        return {"version": made.version, "channels": made.manifest.metrics["channels"]}

    def index(self) -> dict[str, Any]:
        """The retriever in use over the new catalogue."""
        if "index" not in self.ledger.record.base:
            return {"skipped": "the bundle in use has no item index"}
        retriever = self.store.open("retriever", self.base("index").manifest.inputs["retriever"].version)
        index = build_index.run(self.settings, self.store, retriever=retriever, vectors=self.made("vectors"), current=False)
        return {"version": index.version, **index.manifest.metrics}

    def bundle(self) -> dict[str, Any]:
        kinds = [kind for kind in ("codebooks", "pairs", "vectors", "index") if "version" in self.ledger.outcome(kind)]
        made = {kind: self.made(kind) for kind in kinds}
        return {"version": assemble(self.store, self.base("model"), **made, current=False).version}

    def probes(self) -> list[Probe]:
        pairs = self.made("pairs")
        shards = sorted(name for name in pairs.manifest.files if name.startswith("shards/"))
        histories = (read_histories(pq.read_table(pairs.file(name))) for name in shards)
        pool = ItemPool.of(pq.read_table(pairs.file("items.parquet")))
        return choose_probes(histories, pool, self.settings.evaluate, self.settings.refresh.probe_users)


@ray.remote
def _strain(
    source: Source,
    codebooks: Codebooks,
    side: str,
    rows: range,
    code_OKS: UInt8[ndarray, "O K S"],
    had_OK: Bool[ndarray, "O K"],
) -> list[Strain]:
    unit_NKd, present_NK = source.unit_vectors(side, rows)
    return strain(codebooks, SIDES[side], unit_NKd, present_NK, code_OKS, had_OK)


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)
