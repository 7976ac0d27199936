"""prepare: raw logs -> `pairs`, the time-ordered query-item sequences of every user, sharded by a stable hash of the user.

Ray Data maps two stages over small rows, the numbers of parts and of shards; the events themselves go through files in the
draft. Not `repartition(keys=["user_id"])`: in the same speed class, but its shuffle lives in the object store, so a killed run
starts from nothing, where here it resumes at the missing parts and shards.
"""

from functools import partial
from pathlib import Path
from typing import Any

from seminar.artifacts import Artifact, Store
from seminar.config import PrepareConfig, Settings
from seminar.data import prepare
from seminar.datasets import Part, Source, open_source
from seminar.progress import Progress
from workflows.runtime import Step, ray_session, stream


def run(settings: Settings, store: Store, continue_from: Artifact | None = None, *, current: bool = True) -> Artifact:
    """The `pairs` artefact of the configured log; found, resumed or made, and made current unless told not to.

    continue_from: an older pairs artefact whose catalogue rows must keep their numbers (the nightly refresh).
    """
    source = open_source(settings.data)
    draft = prepare.open_draft(store, source, settings.data, settings.prepare, continue_from)
    if store.exists("pairs", draft.version):
        return store.publish(draft, current=current)
    parts, shards = source.parts(), settings.prepare.num_shards
    with ray_session(settings.ray):
        step = partial(bucket_part, source=source, parts=parts, folder=draft.path, num_shards=shards)
        _map("events", "parts", len(parts), prepare.missing_parts(draft.path, len(parts)), step, settings)
        prepare.catalogue(source, draft.path, len(parts), shards, continue_from)
        step = partial(build_shard, folder=draft.path, config=settings.prepare)
        _map("sequences", "shards", shards, prepare.missing_shards(draft.path, shards), step, settings)
    return store.publish(draft, prepare.finish(draft.path, len(parts), shards), current=current)


def bucket_part(row: dict[str, Any], source: Source, parts: list[Part], folder: Path, num_shards: int) -> dict[str, Any]:
    """One part of the log to its bucket file."""
    return {"rows": prepare.bucket(source, parts[row["number"]], row["number"], folder, num_shards)}


def build_shard(row: dict[str, Any], folder: Path, config: PrepareConfig) -> dict[str, Any]:
    """One shard's buckets to its sequences."""
    return {"rows": prepare.build(folder, row["number"], config)}


def _map(stage: str, unit: str, total: int, missing: list[int], step: Step, settings: Settings) -> None:
    rows = 0
    with Progress(f"prepare: {stage}", total, unit, done=total - len(missing)) as progress:
        for result in stream(step, [{"number": number} for number in missing], settings.ray):
            rows += result["rows"]
            progress.advance(1, note=f"{rows:,} rows  {rows / progress.elapsed_s:,.0f} rows/s")
