"""The steps from raw logs to a `pairs` artefact: functions of files in a draft folder, run here or mapped over a cluster.

    bucket     a part of the log  -> _parts/<p>.arrow, record batch s = its events of shard s; ids seen; rejected rows
    catalogue  ids of all parts   -> _catalogue/: items, queries, users by shard
    build      a shard of users   -> shards/part-<s>.parquet, _shards/<s>.*: counts, dropped duplicates
    finish     all counts         -> items.parquet, queries.parquet, quarantine.parquet, report.json

Every step renames the file that marks it done into place last, so a rerun does only what is missing, and reads its inputs in
part and shard order, so the result does not depend on who ran what when. Memory: one part, one shard or the catalogue.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray

from seminar.artifacts import Artifact, Draft, Store, write_atomically
from seminar.config import DataConfig, PrepareConfig
from seminar.data.buckets import read_bucket, replacing, write_by_shard, write_parquet
from seminar.data.catalogue import extend_catalogue, item_catalogue, query_catalogue, with_train_counts, with_weekly_counts
from seminar.data.pairs import build_shard
from seminar.data.quarantine import contents
from seminar.datasets.base import Part, Source
from seminar.schema import EVENTS, QUARANTINE

DUPLICATE = "repeats an event"
ROWS_PER_GROUP = 1024
"""Chunks in one Parquet row group of a shard: at 512 behaviours a chunk about 15 MB, what a streaming reader holds."""


def open_draft(
    store: Store, source: Source, data: DataConfig, config: PrepareConfig, continue_from: Artifact | None = None
) -> Draft:
    """The draft of this preparation; its version depends on the log's content, the settings and what it continues."""
    inputs = {} if continue_from is None else {"continues": continue_from}
    settings = {
        "data": data.model_dump(mode="json", exclude={"path", "images"}),
        "prepare": config.model_dump(mode="json"),
        "source": source.fingerprint(),
        "lineage": [] if continue_from is None else lineage(continue_from),
    }
    return store.draft("pairs", inputs, settings)


def lineage(pairs: Artifact) -> list[str]:
    """Checksums of the pairs artefacts whose catalogue rows mean the same in `pairs`: those it continues, and itself."""
    return [*pairs.manifest.config["lineage"], pairs.manifest.checksum]


def prepare_locally(
    source: Source,
    data: DataConfig,
    config: PrepareConfig,
    store: Store,
    continue_from: Artifact | None = None,
) -> Artifact:
    """All steps one after the other in this process; the same result as the Ray job, file by file."""
    draft = open_draft(store, source, data, config, continue_from)
    if store.exists("pairs", draft.version):
        return store.publish(draft)
    parts = source.parts()
    for number in missing_parts(draft.path, len(parts)):
        bucket(source, parts[number], number, draft.path, config.num_shards)
    catalogue(source, draft.path, len(parts), config.num_shards, continue_from)
    for shard in missing_shards(draft.path, config.num_shards):
        build(draft.path, shard, config)
    return store.publish(draft, finish(draft.path, len(parts), config.num_shards))


def missing_parts(folder: Path, num_parts: int) -> list[int]:
    """Parts of the log that no earlier run has bucketed."""
    return [part for part in range(num_parts) if not _part(folder, part, "arrow").exists()]


def missing_shards(folder: Path, num_shards: int) -> list[int]:
    """Shards that no earlier run has built."""
    return [shard for shard in range(num_shards) if not _shard(folder, shard).exists()]


def bucket(source: Source, part: Part, number: int, folder: Path, num_shards: int) -> int:
    """Spread the events of a part, the `number`-th of the source, over the shards; returns the number of rows read."""
    loaded = source.events(part)
    for name in ("item_id", "query_id"):
        write_parquet(pa.table({name: pc.unique(loaded.table[name].drop_null())}), _part(folder, number, f"{name}.parquet"))
    write_parquet(loaded.quarantine, _part(folder, number, "quarantine.parquet"))
    # Replacing the metadata also drops whatever a reader left there, which must not reach the artefact.
    events = loaded.table.replace_schema_metadata({"file": part.file})
    write_by_shard(events, num_shards, _part(folder, number, "arrow"))
    return len(loaded.table) + len(loaded.quarantine)


def catalogue(source: Source, folder: Path, num_parts: int, num_shards: int, continue_from: Artifact | None = None) -> None:
    """Number the items and queries of the metadata tables and of all parts; spread the users table over the shards.

    Runs after every part is bucketed. With `continue_from` the older artefact's rows keep their numbers.
    """
    done = folder / "_catalogue" / "users.arrow"
    if done.exists():
        return
    items, queries, users = source.items(), source.queries(), source.users()
    all_items = item_catalogue(items.table, _used(folder, num_parts, "item_id"))
    all_queries = query_catalogue(queries.table, _used(folder, num_parts, "query_id"))
    if continue_from is not None:
        all_items = extend_catalogue(pq.read_table(continue_from.file("items.parquet")), all_items)
        all_queries = extend_catalogue(pq.read_table(continue_from.file("queries.parquet")), all_queries)
    rejected = pa.concat_tables([items.quarantine, queries.quarantine, users.quarantine])
    write_parquet(all_items, folder / "_catalogue" / "items.parquet")
    write_parquet(all_queries, folder / "_catalogue" / "queries.parquet")
    write_parquet(rejected, folder / "_catalogue" / "quarantine.parquet")
    write_by_shard(users.table, num_shards, done)


def build(folder: Path, shard: int, config: PrepareConfig) -> int:
    """Build one shard from its buckets of all parts, in part order; returns the number of events read."""
    buckets = [read_bucket(path, shard) for path in sorted((folder / "_parts").glob("*.arrow"))]
    events = pa.concat_tables([EVENTS.empty_table(), *(bucket.replace_schema_metadata() for bucket in buckets)])
    users = read_bucket(folder / "_catalogue" / "users.arrow", shard)
    items = pq.read_table(folder / "_catalogue" / "items.parquet", columns=["item_id"])
    queries = pq.read_table(folder / "_catalogue" / "queries.parquet", columns=["query_id"])
    built = build_shard(events, users, items["item_id"].combine_chunks(), queries["query_id"].combine_chunks(), config)
    scratch = folder / "_shards" / f"{shard:05d}"
    write_parquet(built.item_counts, scratch / "items.parquet")
    write_parquet(built.query_counts, scratch / "queries.parquet")
    write_parquet(_rejected(buckets, events, built.duplicates), scratch / "quarantine.parquet")
    write_atomically(scratch / "counts.json", json.dumps(built.counts))
    write_parquet(built.pairs, _shard(folder, shard), row_group_size=ROWS_PER_GROUP)
    return len(events)


def finish(folder: Path, num_parts: int, num_shards: int) -> dict[str, Any]:
    """Add up what the shards counted; write the final catalogue, quarantine and report; returns the metrics."""
    for leftover in (folder / "shards").glob("_*"):
        leftover.unlink()
    shards = [folder / "_shards" / f"{shard:05d}" for shard in range(num_shards)]
    sizes = {}
    for name, with_counts in (("items", with_weekly_counts), ("queries", with_train_counts)):
        counts = (pq.read_table(shard / f"{name}.parquet") for shard in shards)
        table = with_counts(pq.read_table(folder / "_catalogue" / f"{name}.parquet"), counts)
        write_parquet(table, folder / f"{name}.parquet")
        sizes[name] = len(table)
    rejected = [folder / "_catalogue" / "quarantine.parquet"]
    rejected += [_part(folder, part, "quarantine.parquet") for part in range(num_parts)]
    rejected += [shard / "quarantine.parquet" for shard in shards]
    totals = _add_up(json.loads((shard / "counts.json").read_text()) for shard in shards)
    metrics = {**totals, **sizes, "quarantined": _merge_quarantine(rejected, folder / "quarantine.parquet")}
    report = {**metrics, "history_length": _history_lengths(folder, num_shards)}
    write_atomically(folder / "report.json", json.dumps(report, indent=2, sort_keys=True))
    return metrics


def _part(folder: Path, part: int, name: str) -> Path:
    return folder / "_parts" / f"{part:05d}.{name}"


def _shard(folder: Path, shard: int) -> Path:
    return folder / "shards" / f"part-{shard:05d}.parquet"


def _used(folder: Path, num_parts: int, name: str) -> pa.Array:
    """Distinct ids of all parts; one part at a time, so that memory holds the union and not the sum."""
    union = pa.array([], pa.string())
    for part in range(num_parts):
        seen = pq.read_table(_part(folder, part, f"{name}.parquet"))[name]
        union = pc.unique(pa.chunked_array([union, *seen.chunks]))
    return union


def _rejected(buckets: list[pa.Table], events: pa.Table, duplicates: Int[ndarray, " D"]) -> pa.Table:
    """Repeats across parts as QUARANTINE rows; their numbers in the file are no longer known (-1)."""
    bucket_of_row = np.searchsorted(np.cumsum([len(bucket) for bucket in buckets]), duplicates, side="right")
    files = [buckets[number].schema.metadata[b"file"].decode() for number in bucket_of_row]
    row = contents(events.take(pa.array(duplicates)))
    columns = [pa.repeat("events", len(row)), files, pa.repeat(pa.scalar(-1, pa.int64()), len(row)), [DUPLICATE] * len(row), row]
    return pa.table(columns, schema=QUARANTINE)


def _merge_quarantine(sources: list[Path], target: Path) -> dict[str, int]:
    """Append the files in order, one in memory at a time; returns the rows of each reason."""
    reasons: Counter[str] = Counter()
    with replacing(target) as path, pq.ParquetWriter(path, QUARANTINE, compression="zstd") as writer:
        for source in sources:
            table = pq.read_table(source)
            writer.write_table(table)
            reasons.update(table["reason"].to_pylist())
    return dict(sorted(reasons.items()))


def _add_up(counts: Iterator[dict[str, Any]]) -> dict[str, Any]:
    totals: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    for shard in counts:
        origins.update(shard.pop("origins"))
        totals.update(shard)
    return {**totals, "origins": dict(origins)}


def _history_lengths(folder: Path, num_shards: int) -> dict[str, float]:
    """Quantiles of behaviours a user, without users that have none."""
    lengths = []
    for shard in range(num_shards):
        table = pq.read_table(_shard(folder, shard), columns=["chunk", "history_length"])
        lengths.append(table.filter(pc.equal(table["chunk"], 0))["history_length"].to_numpy())
    lengths = np.concatenate(lengths)
    if not lengths.any():
        return {}
    lengths = lengths[lengths > 0]
    quantiles = {f"p{q}": float(np.percentile(lengths, q)) for q in (10, 50, 90, 99)}
    return {"mean": float(lengths.mean()), **quantiles, "max": float(lengths.max())}
