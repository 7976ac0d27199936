"""A bundle is all that a scorer loads: one self-contained, versioned folder made from artefacts that belong together.

Unit vectors are precomputed, so the encoder and its ID table stay behind; what remains is the ranker's small state,
catalogue tables, codes and codebooks. Assembling and loading both refuse codes made from another PSU than the model's.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray
from safetensors.torch import load_file, save_file
from torch import Tensor

from seminar.artifacts import Artifact, Manifest, Store
from seminar.channels import ChannelEncoder, UnitTables, VectorTables, unit_tables
from seminar.codes.codebook import CatalogueCodes, Codebooks, Stamp, load_codes
from seminar.config import ModelConfig
from seminar.content import FILE as CONTENT_FILE
from seminar.content import ItemContents
from seminar.errors import ArtifactError, explain
from seminar.heads import CatalogueStats
from seminar.ranker import Ranker, load_ranker, serving_ranker
from seminar.schema import NONE

PROPOSER = "proposer"
"""Folder inside a bundle that holds the files of its `index` artefact, where it has one."""
_UNIT = ("item_unit", "item_present", "query_unit", "query_present")
_STATS = ("category_index", "train_count", "category_mean", "train_total", "week_key", "week_sum")


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. Ids are in catalogue order; rows index every table."""

    path: Path
    manifest: Manifest
    config: ModelConfig
    ranker: Ranker
    units: UnitTables
    codebooks: Codebooks
    codes: CatalogueCodes
    project_query: Tensor
    item_ids: list[str]
    item_texts: list[str | None]
    query_ids: list[str]
    query_texts: list[str | None]
    _item_rows: dict[str, int]
    _query_rows: dict[str, int]
    _text_rows: dict[str, int]

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def fingerprint(self) -> str:
        """The PSU that unit vectors and codes come from."""
        return self.manifest.config["psu_fingerprint"]

    @property
    def proposes(self) -> bool:
        """Whether it has an item index, so that it can also say what to rank."""
        return "index" in self.manifest.inputs

    @cached_property
    def item_contents(self) -> ItemContents:
        """What makes vectors of items outside the catalogue; ArtifactError for a bundle of an earlier release."""
        Artifact(self.path, self.manifest).file(CONTENT_FILE)
        return ItemContents.load(self.path)

    def unseen_row(self, category: str | None) -> int:
        """The row of the heads' tables that stands for an unseen item of a category, or of none or an unknown one."""
        return len(self.item_ids) + 1 + (NONE if category is None else self._category_numbers.get(category, NONE))

    @cached_property
    def _category_numbers(self) -> dict[str, int]:
        names = pq.read_table(self.path / "items.parquet", columns=["category"])["category"].to_pylist()
        numbers = self.ranker.heads.category_index[: len(names)].tolist()
        return {name: number for name, number in zip(names, numbers, strict=True) if name is not None and number != NONE}

    @property
    def text_encoder(self) -> str:
        """Name of the encoder that makes vectors of unseen query texts."""
        return self.manifest.config["text_encoder"]

    def item_row(self, ids: Sequence[str]) -> Int[ndarray, " N"]:
        """Catalogue rows of item ids, -1 where unknown."""
        return np.fromiter((self._item_rows.get(i, NONE) for i in ids), np.int64, len(ids))

    def query_row(self, ids: Sequence[str]) -> Int[ndarray, " N"]:
        """Catalogue rows of query ids, -1 where unknown."""
        return np.fromiter((self._query_rows.get(i, NONE) for i in ids), np.int64, len(ids))

    def query_row_by_text(self, texts: Sequence[str]) -> Int[ndarray, " N"]:
        """Catalogue rows of query texts (case and surrounding space ignored), -1 where unknown."""
        return np.fromiter((self._text_rows.get(normal_text(t), NONE) for t in texts), np.int64, len(texts))

    @classmethod
    def load(cls, path: Path | str) -> "Bundle":
        """Read and check a published bundle folder. VersionMismatch if its codes belong to another PSU or codebook."""
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise ArtifactError(
                explain(f"bundle {path}", got="no manifest.json", expected="a published bundle", fix="check the path")
            )
        artifact = Artifact.at(path)
        artifact.verify()
        codebooks, codes = load_codes(artifact.file("codebooks.safetensors"))
        stamp = Stamp(artifact.manifest.inputs["codebooks"].version, artifact.manifest.config["psu_fingerprint"])
        codes.stamp.require(stamp, f"codes of bundle {artifact.version}")
        tables = load_file(artifact.file("tables.safetensors"))
        config = ModelConfig.model_validate(artifact.manifest.config["model"])
        units = UnitTables(*(tables[name] for name in _UNIT))
        stats = CatalogueStats(*(tables[name] for name in _STATS))
        items, queries = (pq.read_table(artifact.file(f"{name}.parquet")) for name in ("items", "queries"))
        item_ids, query_ids = items["item_id"].to_pylist(), queries["query_id"].to_pylist()
        query_texts = queries["text"].to_pylist()
        return cls(
            path=path,
            manifest=artifact.manifest,
            config=config,
            ranker=serving_ranker(config, units, stats.with_unseen(), load_file(artifact.file("model.safetensors"))),
            units=units,
            codebooks=codebooks,
            codes=codes,
            project_query=tables["project_query"],
            item_ids=item_ids,
            item_texts=items["text"].to_pylist(),
            query_ids=query_ids,
            query_texts=query_texts,
            _item_rows={name: row for row, name in enumerate(item_ids)},
            _query_rows={name: row for row, name in enumerate(query_ids)},
            _text_rows={normal_text(text): row for row, text in reversed(list(enumerate(query_texts))) if text},
        )


def assemble(
    store: Store,
    model: Artifact,
    codebooks: Artifact,
    pairs: Artifact,
    vectors: Artifact,
    index: Artifact | None = None,
    *,
    current: bool = True,
) -> Artifact:
    """Publish the bundle of artefacts that belong together; VersionMismatch if they do not. index: what proposes candidates."""
    ranker = load_ranker(model, vectors)
    encoder = ranker.channels
    assert isinstance(encoder, ChannelEncoder)
    fingerprint = encoder.fingerprint()
    _, codes = load_codes(codebooks.file("codebooks.safetensors"))
    codes.stamp.require(Stamp(codebooks.version, fingerprint), f"codes of codebooks {codebooks.version}")
    codebooks.require_input("vectors", vectors, f"rebuild it from vectors {vectors.version}")
    vectors.require_input("pairs", pairs, f"rebuild it from pairs {pairs.version}")
    if index is not None:
        index.require_input("vectors", vectors, "run build-index")
    config = {
        "model": model.manifest.config["model"],
        "psu_fingerprint": fingerprint,
        "text_encoder": vectors.manifest.config["text_encoder"],
        "files": [CONTENT_FILE],
    }
    inputs = {"model": model, "codebooks": codebooks, "pairs": pairs, "vectors": vectors}
    inputs |= {} if index is None else {"index": index}
    draft = store.draft("bundle", inputs, config)
    if not store.exists("bundle", draft.version):
        units = unit_tables(encoder)
        tables = {name: getattr(units, name) for name in _UNIT}
        tables |= {name: getattr(ranker.heads, name) for name in _STATS}
        tables["project_query"] = encoder.project_query.detach()
        save_file({k: v.contiguous() for k, v in tables.items()}, draft.path / "tables.safetensors")
        state = {k: v.contiguous() for k, v in ranker.state_dict().items() if not k.startswith("channels.")}
        save_file(state, draft.path / "model.safetensors")
        (draft.path / "codebooks.safetensors").write_bytes(codebooks.file("codebooks.safetensors").read_bytes())
        ItemContents.of(encoder, VectorTables.load(vectors)).save(draft.path)
        if index is not None:
            (draft.path / PROPOSER).mkdir(exist_ok=True)
            for name in index.manifest.files:
                shutil.copyfile(index.file(name), draft.path / PROPOSER / name)
        for name, columns in (("items", ["item_id", "text", "category"]), ("queries", ["query_id", "text"])):
            table: pa.Table = pq.read_table(pairs.file(f"{name}.parquet"), columns=columns)
            pq.write_table(table, draft.path / f"{name}.parquet")
    return store.publish(draft, {"items": len(ranker.heads.train_count)}, current=current)


def current_index(store: Store, vectors: Artifact) -> Artifact | None:
    """The item index in use, if it is of these vectors."""
    index = store.in_use("index")
    return index if index and index.manifest.inputs["vectors"].checksum == vectors.manifest.checksum else None


def normal_text(text: str) -> str:
    """Query text as it is compared: lower case, single spaces."""
    return " ".join(text.lower().split())
