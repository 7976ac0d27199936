"""Which distinct texts and images a catalogue holds, and its attribute tokens: each content is encoded once, however many
items share it (a quarter of the work on Complete Journey: 17k texts for 68k items)."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Int64
from numpy import ndarray

from seminar.embedding.text import clean_text
from seminar.errors import ConfigError, explain
from seminar.hashing import stable_hash
from seminar.schema import NONE


@dataclass(frozen=True)
class Contents:
    """Distinct contents in order of first appearance, items before queries; *_row is -1 where an item or query has none.

    texts are cleaned, images are paths relative to the image folder. Keys name a content for as long as it does not change.
    """

    texts: list[str]
    item_text: Int32[ndarray, " I"]
    query_text: Int32[ndarray, " Q"]
    images: list[str]
    item_image: Int32[ndarray, " I"]
    image_folder: Path | None

    def text_keys(self) -> list[str]:
        return [_digest(text) for text in self.texts]

    def image_keys(self) -> list[str]:
        """Path and size: cheap to find out for a whole catalogue, and a replaced photograph rarely keeps its size."""
        return [_digest(f"{name}|{_size(self.image_folder, name)}") for name in self.images]


def collect_contents(items: pa.Table, queries: pa.Table, *, text: bool = True, image_folder: Path | None = None) -> Contents:
    """Contents of a catalogue (CATALOGUE_ITEMS, CATALOGUE_QUERIES); without an image folder there are no images.

    text: False leaves every text out. Raises ConfigError if the image folder is no folder.
    """
    if image_folder and not image_folder.is_dir():
        fix = "mend the path or leave it out"
        raise ConfigError(explain("data.images", got=f"{image_folder}", expected="an existing folder", fix=fix))
    text_of: dict[str, int] = {}
    item_text = _rows(items["text"], clean_text, text_of) if text else _none(items)
    query_text = _rows(queries["text"], clean_text, text_of) if text else _none(queries)
    image_of: dict[str, int] = {}
    item_image = _rows(items["image"], str.strip, image_of) if image_folder else _none(items)
    return Contents(list(text_of), item_text, query_text, list(image_of), item_image, image_folder)


def attribute_hashes(items: pa.Table) -> tuple[Int64[ndarray, " A"], Int64[ndarray, " I1"]]:
    """Stable non-negative 63-bit hashes of every item's distinct tokens, `attributes` plus "category=<category>", and offsets.

    Tokens of an item are in order of their hash.
    """
    lists = items["attributes"].combine_chunks()
    has_category = items["category"].is_valid().to_numpy()
    category = pc.binary_join_element_wise("category", items["category"].drop_null(), "=").combine_chunks()
    owner = np.concatenate([pc.list_parent_indices(lists).to_numpy(), np.flatnonzero(has_category)])
    token = pa.chunked_array([pc.list_flatten(lists), category], pa.string())
    valid = token.is_valid().to_numpy()
    encoded = token.drop_null().combine_chunks().dictionary_encode()
    distinct = token_hashes(encoded.dictionary)
    pair = np.unique(np.stack([owner[valid].astype(np.int64), distinct[encoded.indices.to_numpy()]], axis=1), axis=0)
    offsets = np.searchsorted(pair[:, 0], np.arange(len(items) + 1))
    return np.ascontiguousarray(pair[:, 1]), offsets.astype(np.int64)


def token_hashes(tokens: pa.Array | Sequence[str]) -> Int64[ndarray, " N"]:
    """Stable non-negative 63-bit hash of each attribute token, "name=value"."""
    return (stable_hash(tokens) & np.uint64(2**63 - 1)).astype(np.int64)


def _rows(column: pa.ChunkedArray, clean: Callable[[str], str], known: dict[str, int]) -> ndarray:
    """Number of every row's content in `known`, which grows by the new ones; -1 for an empty one."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    cleaned = [clean(value or "") for value in encoded.dictionary.to_pylist()]
    number = np.array([known.setdefault(value, len(known)) if value else NONE for value in cleaned], np.int32)
    return number[encoded.indices.to_numpy()]


def _none(table: pa.Table) -> ndarray:
    return np.full(len(table), NONE, np.int32)


def _size(folder: Path | None, name: str) -> int:
    try:
        return (folder / name).stat().st_size if folder else -1
    except OSError:
        return -1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
