"""What the service is tested on: two real bundles that score differently, bundles that must be refused, the offline oracle."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from seminar.artifacts import Artifact, FileEntry, Store, sha256_of
from seminar.batching import Request, collate
from seminar.bundle import Bundle
from seminar.schema import CTR, NONE, PSR
from seminar.sequences import Histories, read_histories
from tests.bundles import make_bundle, make_vectors


@dataclass
class World:
    """Two published bundles of the tiny dataset that score differently, and its histories."""

    store: Store
    bundles: tuple[Artifact, Artifact]
    shards: list[Histories]

    def user(self, name: str) -> tuple[Histories, int]:
        return next((shard, shard.user_id.index(name)) for shard in self.shards if name in shard.user_id)

    @classmethod
    def of(cls, store: Store, pairs: Artifact) -> "World":
        vectors = make_vectors(store, pairs)
        first = make_bundle(store, pairs, vectors, seed=0)
        second = make_bundle(store, pairs, vectors, seed=1, current=False)
        names = sorted(name for name in pairs.manifest.files if name.startswith("shards/"))
        return cls(store, (first, second), [read_histories(pq.read_table(pairs.file(name))) for name in names])


def offline(world: World, bundle: Artifact, user: str, items: list[str], query: str | None, time_ms: int) -> np.ndarray:
    """Probabilities of the offline ranker: the whole history as a batch of one, exact retrieval."""
    loaded = Bundle.load(bundle.path)
    histories, row = world.user(user)
    task = CTR if query is None else PSR
    count = len(items)
    request = Request(
        row=row,
        end=int(histories.lengths[row]),
        time_ms=time_ms,
        item_T=loaded.item_row(items),
        query_T=np.full(count, NONE if query is None else loaded.query_row([query])[0]),
        label_T=np.zeros(count, np.float32),
        task_T=np.full(count, task),
    )
    with torch.inference_mode():
        return torch.sigmoid(loaded.ranker.score(collate(histories, [request], 10**6))[0]).numpy()


def mixture(world: World, folder: Path) -> Path:
    """The second bundle with the first one's codes, and a manifest whose checksums agree."""
    copy = _copy(world, folder)
    shutil.copy(world.bundles[0].path / "codebooks.safetensors", folder)
    return _restamp(world, copy, "codebooks.safetensors")


def damaged(world: World, folder: Path) -> Path:
    """The second bundle with one bit changed."""
    path = _copy(world, folder) / "tables.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return folder


def diverged(world: World, folder: Path) -> Path:
    """The second bundle with a model that gives NaN, published with right checksums."""
    path = _copy(world, folder) / "model.safetensors"
    state = load_file(path)
    state["heads.out.bias"][:] = torch.nan
    save_file(state, path)
    return _restamp(world, folder, path.name)


def _copy(world: World, folder: Path) -> Path:
    shutil.copytree(world.bundles[1].path, folder)
    return folder


def _restamp(world: World, folder: Path, name: str) -> Path:
    manifest, path = world.bundles[1].manifest, folder / name
    entry = FileEntry(size_bytes=path.stat().st_size, sha256=sha256_of(path))
    changed = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    (folder / "manifest.json").write_text(changed.model_dump_json())
    return folder
