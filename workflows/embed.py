"""embed: `pairs` -> `vectors`. Distinct texts and photographs are encoded once, by actors that load the encoder once.

Pieces lie in the draft as files, so a killed run goes on where it stopped, and last night's vectors are taken over by content.
What one process finishes within the time a cluster needs to start is done in this one (Complete Journey's text: 2 s).
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import ray
import ray.data

from seminar import errors
from seminar.artifacts import Artifact, Store
from seminar.config import Settings
from seminar.embedding.base import Encoded
from seminar.embedding.pieces import Piece, PieceEncoder, read_piece, write_piece
from seminar.embedding.vectors import contents_for, describe, embed
from seminar.progress import Progress
from workflows.runtime import checked, guarded, ray_session

CLUSTER_PAYS_AFTER_S = 30.0
"""Estimated seconds of work in one process; a Ray session takes about 10 s and every actor 3-6 s for its encoder."""


def run(settings: Settings, store: Store, *, pairs: Artifact | None = None, current: bool = True) -> Artifact:
    """Vectors of the catalogue of `pairs` (default: the current one); current=False publishes without making it current."""
    pairs = pairs or store.open("pairs")
    items, queries = pq.read_table(pairs.file("items.parquet")), pq.read_table(pairs.file("queries.parquet"))
    contents = contents_for(items, queries, settings.embed, settings.data.images)
    config = describe(settings.embed, contents, pairs)
    version = store.version_of("vectors", {"pairs": pairs}, config)
    if store.exists("vectors", version):
        if current:
            store.set_current("vectors", version)
        return store.open("vectors", version)
    draft = store.draft("vectors", {"pairs": pairs}, config, version)
    pieces = draft.path / "_pieces"
    pieces.mkdir(exist_ok=True)
    vectors = embed(items, contents, settings.embed, lambda work: encode(work, pieces, settings), _current(store))
    vectors.save(draft.path)
    metrics = {**vectors.metrics, "origins": pairs.manifest.metrics.get("origins", {})}
    return store.publish(draft, metrics, current=current)


def encode(work: list[Piece], folder: Path, settings: Settings) -> list[Encoded]:
    """Encode the pieces whose file is not in `folder` yet, here or on the cluster; all of them, in order."""
    missing = [piece for piece in work if not (folder / piece.filename).is_file()]
    if missing:
        kind = missing[0].kind
        total, todo = (sum(len(piece.contents) for piece in pieces) for pieces in (work, missing))
        with Progress(f"embed: {kind}", total=total, unit=f"{kind}s", done=total - todo) as progress:
            for done in encode_missing(missing, folder, settings):
                progress.advance(done)
    return [read_piece(folder / piece.filename) for piece in work]


def encode_missing(missing: list[Piece], folder: Path, settings: Settings) -> Iterator[int]:
    """Write every piece's file; yields the number of contents of each as it is finished."""
    estimate_s = sum(len(piece.contents) / piece.spec.rate_per_s for piece in missing)
    if estimate_s < CLUSTER_PAYS_AFTER_S:
        encoder = PieceEncoder(batch_size=settings.embed.batch_size)
        for piece in missing:
            write_piece(encoder.encode(piece), folder / piece.filename)
            yield len(piece.contents)
        return
    with ray_session(settings.ray):
        yield from encode_on_cluster(missing, folder, settings)


def encode_on_cluster(missing: list[Piece], folder: Path, settings: Settings) -> Iterator[int]:
    """The same through a Ray Data actor pool; needs an open session and a folder that every node can write to."""
    config = settings.ray
    actors = max(1, min(len(missing), int(ray.cluster_resources().get("CPU", 1) // config.cpus_per_worker)))
    dataset = ray.data.from_items([asdict(piece) for piece in missing], override_num_blocks=len(missing)).map(
        cast(Any, PieceActor),
        fn_constructor_kwargs={
            "folder": str(folder),
            "batch_size": settings.embed.batch_size,
            "device": "cuda" if config.gpus_per_worker else "cpu",
        },
        # An autoscaling cluster may add actors up to one a piece; a fixed one starts with all that fit.
        compute=ray.data.ActorPoolStrategy(min_size=actors, max_size=len(missing)),
        num_cpus=config.cpus_per_worker,
        num_gpus=config.gpus_per_worker or None,
    )
    for row in checked(dataset.iter_rows()):
        yield row["done"]


class PieceActor:
    """A PieceEncoder that writes what it encodes; rows in and out are small, the vectors go through files."""

    def __init__(self, folder: str, batch_size: int, device: str) -> None:
        self._folder = Path(folder)
        self._encoder = PieceEncoder(batch_size=batch_size, device=device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return guarded(self._encode, row)

    def _encode(self, row: dict[str, Any]) -> dict[str, Any]:
        piece = Piece(row["kind"], row["encoder"], list(row["contents"]), list(row["keys"]), row["folder"])
        write_piece(self._encoder.encode(piece), self._folder / piece.filename)
        return {"done": len(piece.contents)}


def _current(store: Store) -> Artifact | None:
    try:
        return store.open("vectors")
    except errors.ArtifactError:
        return None
