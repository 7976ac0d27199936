"""The M+1 channels of a query-item pair: content tables and their projections to unit vectors.

Content lives in one table an item or query and is looked up by catalogue row; nothing is ever stored per behaviour.
`ChannelEncoder` holds all that a code depends on: its unit vectors are what product quantisation encodes, and its fingerprint is
what codes are stamped with. Scales, gate and G_j (`seminar/gate.py`) may change freely without a re-encode.
"""

import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from safetensors.numpy import load_file
from torch import Tensor, nn

from seminar.artifacts import Artifact
from seminar.config import ModelConfig
from seminar.id_table import IdTable
from seminar.rows import distinct, gather_rows, unit_rows
from seminar.schema import ATTRIBUTES, CHANNELS, IMAGE, QUERY, TEXT


@dataclass(frozen=True)
class VectorTables:
    """The `vectors` artefact in memory; *_row maps a catalogue row to a content row, -1 where the channel is missing.

    attribute_hash[attribute_offsets[i]:attribute_offsets[i+1]] are the stable token hashes of item i; `week` and `week_count` lie
    between week_offsets in the same way (CATALOGUE_ITEMS).
    """

    text: Float[ndarray, "Ut Dt"]
    text_row: Int[ndarray, " I"]
    image: Float[ndarray, "Ui Di"]
    image_row: Int[ndarray, " I"]
    query: Float[ndarray, "Uq Dt"]
    query_row: Int[ndarray, " Q"]
    attribute_hash: Int[ndarray, " A"]
    attribute_offsets: Int[ndarray, " I1"]
    category_index: Int[ndarray, " I"]
    train_count: Int[ndarray, " I"]
    week_offsets: Int[ndarray, " I1"]
    week: Int[ndarray, " W"]
    week_count: Int[ndarray, " W"]

    @classmethod
    def load(cls, vectors: Artifact | Path) -> "VectorTables":
        """Read `vectors.safetensors` of a published vectors artefact, or of a folder that holds one."""
        path = vectors.file("vectors.safetensors") if isinstance(vectors, Artifact) else vectors / "vectors.safetensors"
        return cls(**load_file(path))

    @property
    def num_items(self) -> int:
        return len(self.text_row)

    @property
    def num_queries(self) -> int:
        return len(self.query_row)


def encoders_of(vectors: Artifact) -> dict[str, Any]:
    """What made these vectors, apart from the catalogue: encoders, their widths and versions. Part of a model's manifest."""
    return {name: value for name, value in vectors.manifest.config.items() if name not in ("lineage", "image_files")}


@dataclass(frozen=True)
class Columns:
    """Channels of N pairs, each distinct vector once: unit vectors of the M channels one after another, row_NM of which -1 is
    missing. sizes: rows of each channel. new_N: pairs whose item is shown as new, in training."""

    unit_Ud: Float[Tensor, "U d"]
    sizes: tuple[int, ...]
    row_NM: Int[Tensor, "N M"]
    new_N: Bool[Tensor, " N"] | None


@dataclass(frozen=True)
class Pairs:
    """N query-item pairs in channel space: L2-normalised vectors (zero where missing) and which channels exist.

    columns: the same with each distinct vector once, where it was just projected.
    """

    unit_NMd: Float[Tensor, "N M d"]
    present_NM: Bool[Tensor, "N M"]
    columns: Columns | None = None


@runtime_checkable
class ChannelSource(Protocol):
    """Where unit vectors come from: the trainable encoder, or a bundle's precomputed tables."""

    def unit_items(self, rows: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N 3 d"], Bool[Tensor, "N 3"]]:
        """Text, image and attribute channel of catalogue items."""
        ...

    def unit_queries(self, rows: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N d"], Bool[Tensor, " N"]]:
        """Query channel; row -1 is "no query"."""
        ...


def encode_pairs(source: ChannelSource, item_N: Int[Tensor, " N"], query_N: Int[Tensor, " N"]) -> Pairs:
    """All four channels of N pairs, in CHANNELS order; each distinct item and query is projected once."""
    if isinstance(source, UnitTables):
        # Nothing to project: looking a row up twice is cheaper than finding out that it is the same.
        unit_i, present_i = source.unit_items(item_N)
        unit_q, present_q = source.unit_queries(query_N)
        return Pairs(torch.cat([unit_q[:, None], unit_i], 1), torch.cat([present_q[:, None], present_i], 1))
    if isinstance(source, ChannelEncoder):
        columns = source.columns(item_N, query_N)
        return Pairs(gather_rows(columns.unit_Ud, columns.row_NM), columns.row_NM >= 0, columns)
    items, item_row = distinct(item_N)
    queries, query_row = distinct(query_N + 1)
    unit_i, present_i = source.unit_items(items)
    unit_q, present_q = source.unit_queries(queries - 1)
    return Pairs(
        torch.cat([unit_q[query_row][:, None], unit_i[item_row]], dim=1),
        torch.cat([present_q[query_row][:, None], present_i[item_row]], dim=1),
    )


class ChannelEncoder(nn.Module):
    """x^(m) = encoder output W_m, L2-normalised (SPEC 2). Attributes = item ID + hashed attribute tokens.

    The ID of an item never seen in training (train_count 0) is missing, not random: such an item lives by its content.
    In training `show_as_new` is the share of items that stand there as a new one would, without ID (and, in the heads, without
    popularity), so that content learns to speak for it (DropoutNet, Volkovs et al. 2017); `hide_channels` hides a share of the
    pairs' queries, texts and images.
    """

    text: Tensor
    text_row: Tensor
    image: Tensor
    image_row: Tensor
    query: Tensor
    query_row: Tensor
    token_IA: Tensor
    seen: Tensor

    def __init__(self, tables: VectorTables, config: ModelConfig, generator: torch.Generator, num_ids: int | None = None) -> None:
        """num_ids: catalogue rows that have an ID embedding; rows appended to the catalogue later live by their content."""
        super().__init__()
        self.num_token_rows = config.num_token_rows
        self.used = frozenset(config.channels)
        self.show_as_new = self.hide_channels = 0.0
        num_ids = tables.num_items if num_ids is None else num_ids
        self.ids = IdTable(num_ids, config.id_dim, generator)
        self.register_buffer("seen", torch.from_numpy(tables.train_count[:num_ids] > 0))
        self.tokens = IdTable(config.num_token_rows, config.id_dim, generator)
        text = _projection(tables.text.shape[1], config.dim, generator)
        self.project_text = nn.Parameter(text)
        self.project_query = nn.Parameter(text.clone())
        self.project_image = nn.Parameter(_projection(tables.image.shape[1], config.dim, generator))
        self.project_attributes = nn.Parameter(_projection(config.id_dim, config.dim, generator))
        self._set_tables(tables)

    def _set_tables(self, tables: VectorTables) -> None:
        counts = np.diff(tables.attribute_offsets)
        width = max(int(counts.max(initial=0)), 1)
        token_IA = np.full((tables.num_items, width), -1, np.int64)
        token_IA[np.arange(width) < counts[:, None]] = tables.attribute_hash % self.num_token_rows
        buffers = {
            "text": tables.text,
            "text_row": tables.text_row,
            "image": tables.image,
            "image_row": tables.image_row,
            "query": tables.query,
            "query_row": tables.query_row,
            "token_IA": token_IA,
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value)), persistent=False)

    def columns(self, item_N: Int[Tensor, " N"], query_N: Int[Tensor, " N"]) -> Columns:
        """All channels of N pairs, in CHANNELS order."""
        items, item_row = distinct(item_N)
        new = torch.rand(items.shape, device=items.device) < self.show_as_new if self.training and self.show_as_new else None
        of_items = [(unit, torch.where(item_row >= 0, row[item_row], -1)) for unit, row in self._item_columns(items, new)]
        units, rows = zip(self._query_column(query_N), *of_items, strict=True)
        sizes = tuple(len(unit) for unit in units)
        starts = torch.tensor([0, *itertools.accumulate(sizes)][:-1], device=item_N.device)
        row_NM = torch.stack(rows, 1)
        if self.training and self.hide_channels:
            hidden_NM = torch.rand(row_NM.shape, device=row_NM.device) < self.hide_channels
            hidden_NM[:, ATTRIBUTES] = False
            row_NM = row_NM.masked_fill(hidden_NM, -1)
        new_N = None if new is None else new[item_row]
        return Columns(torch.cat(units), sizes, torch.where(row_NM >= 0, row_NM + starts, -1), new_N)

    def unit_items(self, rows: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N 3 d"], Bool[Tensor, "N 3"]]:
        """Unit vectors of the text, image and attribute channels, and which exist."""
        parts = [_spread(*column) for column in self._item_columns(rows)]
        return torch.stack([unit for unit, _ in parts], 1), torch.stack([present for _, present in parts], 1)

    def unit_queries(self, rows: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N d"], Bool[Tensor, " N"]]:
        """Unit vectors of the query channel; row -1 is missing."""
        return _spread(*self._query_column(rows))

    def _item_columns(self, rows: Tensor, new: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        return [
            _content(self.text, self._if_used(TEXT, self.text_row[rows]), self.project_text),
            _content(self.image, self._if_used(IMAGE, self.image_row[rows]), self.project_image),
            self._attributes(rows, new),
        ]

    def _query_column(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        content = (
            torch.where(rows >= 0, self.query_row[rows.clamp_min(0)].long(), -1) if len(self.query_row) else rows.clamp_max(-1)
        )
        return _content(self.query, self._if_used(QUERY, content), self.project_query)

    def fingerprint(self) -> str:
        """SHA-256 of the parameters unit vectors depend on; codes carry it and loading compares it."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _if_used(self, channel: int, row_N: Tensor) -> Tensor:
        return row_N if CHANNELS[channel] in self.used else torch.full_like(row_N, -1)

    def _attributes(self, rows: Tensor, new: Tensor | None) -> tuple[Tensor, Tensor]:
        if CHANNELS[ATTRIBUTES] not in self.used:
            return self.text.new_zeros(0, self.project_attributes.shape[1], dtype=torch.float32), torch.full_like(rows, -1)
        shown = torch.zeros_like(rows, dtype=torch.bool)
        if len(self.seen):
            shown = (rows < len(self.seen)) & self.seen[rows.clamp_max(len(self.seen) - 1)]
        if new is not None:
            shown = shown & ~new
        token_NA = self.token_IA[rows]
        present = shown | (token_NA >= 0).any(1)
        summed = self.ids(torch.where(shown, rows, -1)) + self.tokens.bag(token_NA)
        return unit_rows(summed @ self.project_attributes), torch.where(present, torch.arange(len(rows), device=rows.device), -1)


@dataclass(frozen=True)
class UnitTables:
    """Precomputed unit vectors of a whole catalogue: what a bundle serves from, and what codes are made of."""

    item_unit: Float[Tensor, "I 3 d"]
    item_present: Bool[Tensor, "I 3"]
    query_unit: Float[Tensor, "Q d"]
    query_present: Bool[Tensor, " Q"]

    @property
    def num_queries(self) -> int:
        return len(self.query_unit)

    def unit_items(self, rows: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N 3 d"], Bool[Tensor, "N 3"]]:
        return self.item_unit.index_select(0, rows), self.item_present.index_select(0, rows)

    def unit_queries(self, rows: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N d"], Bool[Tensor, " N"]]:
        if not len(self.query_unit):
            return self.query_unit.new_zeros(len(rows), self.item_unit.shape[-1]), torch.zeros_like(rows, dtype=torch.bool)
        present = (rows >= 0) & self.query_present[rows.clamp_min(0)]
        return torch.where(present[:, None], self.query_unit.index_select(0, rows.clamp_min(0)), 0.0), present


@dataclass(frozen=True)
class WithUnseenItems:
    """A channel source whose item rows beyond the catalogue are given vectors."""

    base: UnitTables
    unit_X3d: Float[Tensor, "X 3 d"]
    present_X3: Bool[Tensor, "X 3"]

    @property
    def num_queries(self) -> int:
        return self.base.num_queries

    def unit_items(self, rows: Int[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        first = len(self.base.item_unit)
        unit, present = self.base.unit_items(rows.clamp_max(first - 1))
        unseen, row = rows >= first, (rows - first).clamp_min(0)
        unit = torch.where(unseen[:, None, None], self.unit_X3d[row], unit)
        return unit, torch.where(unseen[:, None], self.present_X3[row], present)

    def unit_queries(self, rows: Int[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        return self.base.unit_queries(rows)


@dataclass(frozen=True)
class WithUnseenQueries:
    """A channel source whose query rows beyond the catalogue are given vectors."""

    base: UnitTables | WithUnseenItems
    unseen_Xd: Tensor
    used: bool

    def unit_items(self, rows: Int[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        return self.base.unit_items(rows)

    def unit_queries(self, rows: Int[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        first = self.base.num_queries
        unit, present = self.base.unit_queries(torch.where(rows < first, rows, -1))
        unseen = (rows >= first) & self.used
        unit = torch.where(unseen[:, None], self.unseen_Xd[(rows - first).clamp_min(0)], unit)
        return unit, present | unseen


@torch.no_grad()
def unit_tables(encoder: ChannelEncoder, block: int = 8192) -> UnitTables:
    """Unit vectors of every catalogue item and query."""
    encoder.eval()
    items = [encoder.unit_items(rows) for rows in torch.arange(len(encoder.text_row)).split(block)]
    unit_q, present_q = encoder.unit_queries(torch.arange(len(encoder.query_row)))
    return UnitTables(torch.cat([u for u, _ in items]), torch.cat([p for _, p in items]), unit_q, present_q)


def _projection(rows: int, dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, dim, generator=generator) / math.sqrt(max(rows, 1))


def _content(table: Tensor, row_N: Tensor, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of the distinct content rows, and which of them each is, -1 missing; many items share a text or photograph."""
    if not len(table):
        return projection.new_zeros(0, projection.shape[1]), torch.full_like(row_N, -1, dtype=torch.int64)
    content, row = distinct(row_N)
    return unit_rows(table[content].float() @ projection), row


def _spread(unit: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """A vector a pair, zero where missing, and which exist."""
    return gather_rows(unit, row), row >= 0
