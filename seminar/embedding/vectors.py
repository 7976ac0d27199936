"""Encoded contents to the `vectors` artefact: tables without gaps, rows by catalogue row, what is covered and what failed.

Price: the whole content table in one machine's memory, once (Complete Journey: 9 MB of text; 512 bytes a distinct text).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16, Int32
from numpy import ndarray
from safetensors.numpy import load_file, save_file

from seminar.artifacts import Artifact
from seminar.channels import VectorTables
from seminar.config import EmbedConfig
from seminar.data.prepare import lineage
from seminar.data.weekly import flat_weeks
from seminar.embedding.base import Encoded
from seminar.embedding.contents import Contents, attribute_hashes, collect_contents
from seminar.embedding.pieces import ENCODERS, Piece, PieceEncoder
from seminar.schema import NONE

RECIPE = 1
"""Raised whenever cleaning or preprocessing changes what a content's vector is."""

CONTENTS = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uses", pa.int64(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("content", pa.string()),
    ]
)
"""contents.parquet: every distinct content of table text, image or query. row: in that table of vectors.safetensors, -1 if it
could not be encoded; then `reason` says why and `content` is the text or image path. uses: items or queries that hold it."""


@dataclass(frozen=True)
class Vectors:
    """Everything a vectors artefact holds."""

    tables: VectorTables
    contents: pa.Table
    metrics: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write vectors.safetensors and contents.parquet."""
        arrays = {name: np.ascontiguousarray(value) for name, value in asdict(self.tables).items()}
        save_file(arrays, folder / "vectors.safetensors")
        pq.write_table(self.contents, folder / "contents.parquet")


EncodePieces = Callable[[list[Piece]], Sequence[Encoded]]
"""Encodes pieces, here or on a cluster; results in their order."""


def describe(config: EmbedConfig, contents: Contents, pairs: Artifact) -> dict[str, Any]:
    """Manifest settings of the vectors of `pairs`: the encoders, and the lineage of catalogues whose rows mean the same."""
    return {**describe_encoders(config, contents), "lineage": lineage(pairs)}


def describe_encoders(config: EmbedConfig, contents: Contents) -> dict[str, Any]:
    """What the vectors depend on: encoder names, widths and package versions, the image files. Goes into the manifest.

    A package that nothing needs may be absent; then its version is null.
    """
    image_files = hashlib.sha256("".join(sorted(contents.image_keys())).encode()).hexdigest()
    described: dict[str, Any] = {"recipe": RECIPE, "image_files": image_files if contents.images else None}
    for kind, name, used in (("text", config.text_encoder, contents.texts), ("image", config.image_encoder, contents.images)):
        spec = ENCODERS[kind].get(name)
        described[f"{kind}_encoder"] = name
        described[f"{kind}_dim"] = spec.dim if spec else 0
        described[f"{kind}_version"] = spec.package_version() if spec and used else None
    return described


def embed_locally(items: pa.Table, queries: pa.Table, config: EmbedConfig, images: Path | None = None) -> Vectors:
    """Vectors of a catalogue in this process, without files: the reference for the distributed job."""
    encoder = PieceEncoder(batch_size=config.batch_size)
    contents = contents_for(items, queries, config, images)
    return embed(items, contents, config, lambda pieces: [encoder.encode(piece) for piece in pieces])


def contents_for(items: pa.Table, queries: pa.Table, config: EmbedConfig, images: Path | None) -> Contents:
    """The distinct contents that `config` wants encoded; `images` is the folder that the image column is relative to."""
    image_folder = images if config.image_encoder != "none" else None
    return collect_contents(items, queries, text=config.text_encoder != "none", image_folder=image_folder)


def embed(
    items: pa.Table, contents: Contents, config: EmbedConfig, encode: EncodePieces, previous: Artifact | None = None
) -> Vectors:
    """Encode what `previous` (a vectors artefact) does not hold yet and lay everything out by catalogue row."""
    text_work = Piece("text", config.text_encoder, contents.texts, contents.text_keys())
    image_work = Piece("image", config.image_encoder, contents.images, contents.image_keys(), str(contents.image_folder or ""))
    texts, reused_texts = _encode_all(text_work, encode, previous)
    images, reused_images = _encode_all(image_work, encode, previous)
    text, text_row, text_listing = _lay_out("text", contents.item_text, texts, text_work)
    query, query_row, query_listing = _lay_out("query", contents.query_text, texts, text_work)
    image, image_row, image_listing = _lay_out("image", contents.item_image, images, image_work)
    attribute_hash, attribute_offsets = attribute_hashes(items)
    week_offsets, week, week_count = flat_weeks(items)
    tables = VectorTables(
        text=text,
        text_row=text_row,
        image=image,
        image_row=image_row,
        query=query,
        query_row=query_row,
        attribute_hash=attribute_hash,
        attribute_offsets=attribute_offsets,
        category_index=items["category_index"].to_numpy(),
        train_count=items["train_count"].to_numpy(),
        week_offsets=week_offsets,
        week=week,
        week_count=week_count,
    )
    listing = pa.concat_tables([text_listing, image_listing, query_listing])
    reused = {"text": reused_texts, "image": reused_images}
    return Vectors(tables, listing, {**_coverage(tables), **_failures(listing), "reused": reused})


def _encode_all(work: Piece, encode: EncodePieces, previous: Artifact | None) -> tuple[Encoded, int]:
    """Vectors of every content of `work`, and how many of them `previous` had."""
    if work.encoder == "none":
        return Encoded(np.zeros((0, 0), np.float16), {}), 0
    vectors = np.zeros((len(work.contents), work.spec.dim), np.float16)
    known = _rows_by_key(work, previous)
    reused = [i for i, key in enumerate(work.keys) if key in known]
    for i in reused:
        vectors[i] = known[work.keys[i]]
    todo = [i for i, key in enumerate(work.keys) if key not in known]
    failures: dict[int, str] = {}
    done = 0
    for encoded in encode(work.take(todo).cut()) if todo else []:
        rows = todo[done : done + len(encoded.vectors)]
        vectors[rows] = encoded.vectors
        failures |= {rows[i]: reason for i, reason in encoded.failures.items()}
        done += len(rows)
    return Encoded(vectors, failures), len(reused)


def _rows_by_key(work: Piece, previous: Artifact | None) -> dict[str, ndarray]:
    """Vectors of an older artefact made by the same encoder in the same way, by content key."""
    if previous is None or not work.contents:
        return {}
    config = previous.manifest.config
    made_by = (config["recipe"], config[f"{work.kind}_encoder"], config[f"{work.kind}_version"])
    if made_by != (RECIPE, work.encoder, work.spec.package_version()):
        return {}
    tables = load_file(previous.file("vectors.safetensors"))
    listing = pq.read_table(previous.file("contents.parquet"), columns=["table", "row", "key"]).to_pydict()
    wanted = ("text", "query") if work.kind == "text" else ("image",)
    rows = zip(listing["table"], listing["row"], listing["key"], strict=True)
    return {key: tables[table][row] for table, row, key in rows if table in wanted and row != NONE}


def _lay_out(
    table: str, number: Int32[ndarray, " N"], encoded: Encoded, work: Piece
) -> tuple[Float16[ndarray, "U D"], Int32[ndarray, " N"], pa.Table]:
    """The vectors of `encoded` that N catalogue rows use, without the failed; each catalogue row's row in them; the listing."""
    contents, keys = work.contents, work.keys
    uses = np.bincount(number[number >= 0], minlength=len(contents))
    used = np.flatnonzero(uses)
    ok = np.array([i not in encoded.failures for i in used.tolist()], bool)
    row_of = np.full(len(contents) + 1, NONE, np.int32)  # the last entry answers for number -1
    row_of[used[ok]] = np.arange(ok.sum())
    failed = [encoded.failures.get(i) for i in used.tolist()]
    columns = [
        pa.repeat(table, len(used)),
        row_of[used],
        [keys[i] for i in used.tolist()],
        uses[used],
        failed,
        [contents[i] if reason else None for i, reason in zip(used.tolist(), failed, strict=True)],
    ]
    listing = pa.table([pa.array(column, field.type) for column, field in zip(columns, CONTENTS, strict=True)], schema=CONTENTS)
    return encoded.vectors[used[ok]], row_of[number], listing


def _coverage(tables: VectorTables) -> dict[str, Any]:
    """Share of items, and of training behaviours, whose channel exists; share of queries with a vector."""
    weight = tables.train_count / max(int(tables.train_count.sum()), 1)
    present = {"text": tables.text_row >= 0, "image": tables.image_row >= 0, "attributes": np.diff(tables.attribute_offsets) > 0}
    coverage: dict[str, Any] = {
        channel: {"items": float(has.mean()) if len(has) else 0.0, "behaviours": float(weight[has].sum())}
        for channel, has in present.items()
    }
    coverage["query"] = {"queries": float((tables.query_row >= 0).mean()) if tables.num_queries else 0.0}
    distinct = {"text": len(tables.text), "image": len(tables.image), "query": len(tables.query)}
    return {"coverage": coverage, "distinct": distinct, "attribute_tokens": len(tables.attribute_hash)}


def _failures(listing: pa.Table) -> dict[str, Any]:
    """Contents that could not be encoded, counted by table and reason; the list itself is in contents.parquet."""
    failed = listing.filter(listing["reason"].is_valid()).select(["table", "reason"]).to_pylist()
    return {"failed": dict(sorted(Counter(f"{row['table']}: {row['reason']}" for row in failed).items()))}
