"""What the service is tested on: real bundles that score and propose differently, bundles to refuse, the offline oracle; and the
service in one process."""

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import uvicorn
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from seminar.artifacts import Artifact, FileEntry, Store, sha256_of
from seminar.batching import Request, collate
from seminar.bundle import PROPOSER, Bundle
from seminar.candidates.index import ItemIndex
from seminar.client import api
from seminar.config import IndexConfig
from seminar.schema import CTR, NONE, PSR
from seminar.sequences import Histories, read_histories
from serve.engine import Engine
from serve.observe import Observer
from serve.options import Options
from serve.routes import create_app
from serve.stages import LocalProposals, LocalStages
from tests.bundles import make_bundle, make_index, make_retriever, make_vectors


@dataclass
class World:
    """Two published bundles of the tiny dataset that score and propose differently, the first one again without an item index,
    and its histories."""

    store: Store
    bundles: tuple[Artifact, Artifact]
    plain: Artifact
    shards: list[Histories]

    def user(self, name: str) -> tuple[Histories, int]:
        return next((shard, shard.user_id.index(name)) for shard in self.shards if name in shard.user_id)

    @classmethod
    def of(cls, store: Store, pairs: Artifact) -> "World":
        vectors = make_vectors(store, pairs)
        towers = [make_retriever(store, pairs, vectors, seed, current=False) for seed in (0, 1)]
        indices = [make_index(store, tower, vectors, pairs, current=False) for tower in towers]
        first = make_bundle(store, pairs, vectors, indices[0], seed=0)
        second = make_bundle(store, pairs, vectors, indices[1], seed=1, current=False)
        plain = make_bundle(store, pairs, vectors, seed=0, current=False)
        names = sorted(name for name in pairs.manifest.files if name.startswith("shards/"))
        return cls(store, (first, second), plain, [read_histories(pq.read_table(pairs.file(name))) for name in names])


@dataclass
class InProcess:
    engine: Engine

    async def replicas(self) -> Sequence[api.ReplicaState]:
        return []


@dataclass
class Service:
    client: TestClient
    engine: Engine

    def offer(self, bundle: object) -> bool:
        assert self.client.portal is not None
        return self.client.portal.call(self.engine.offers.offer, {"bundle": bundle})

    def score(self, **request: Any) -> dict[str, Any]:
        return self._post("score", request)

    def recommend(self, **request: Any) -> dict[str, Any]:
        return self._post("recommend", request)

    def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post(f"/v1/{route}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


class open_service:
    """A service over the folder `history`, or without one over `history_url`, as one process would run it."""

    def __init__(self, world: World, history: Path | None, observer: Observer | None = None, **args: Any) -> None:
        place = {} if history is None else {"history": str(history), "max_history_gib": 0.1}
        options = Options.parse({"workdir": str(world.store.root), **place, **args})
        proposals = LocalProposals(options) if options.recommend else None
        self.engine = Engine(options, options.open_history(), LocalStages(observer), proposals, observer)
        self.client = TestClient(create_app(lambda: InProcess(self.engine)))

    def __enter__(self) -> Service:
        self.client.__enter__()
        opened = Service(self.client, self.engine)
        assert opened.offer("current")
        return opened

    def __exit__(self, *error: object) -> None:
        self.client.__exit__(None, None, None)
        self.engine.store.close()


@contextmanager
def over_http(service: Service) -> Iterator[str]:
    """Base URL at which the service answers on loopback."""
    server = uvicorn.Server(uvicorn.Config(service.client.app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


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


def lost(world: World, folder: Path) -> Path:
    """The second bundle with a dual tower that gives NaN, published with right checksums."""
    path = _copy(world, folder) / PROPOSER / "tower.safetensors"
    state = load_file(path)
    state["fusion.norm.weight"][:] = torch.nan
    save_file(state, path)
    return _restamp(world, folder, f"{PROPOSER}/{path.name}")


def outgrown(world: World, folder: Path) -> Path:
    """The second bundle with the item index of a smaller catalogue, published with right checksums."""
    name = f"{PROPOSER}/index.faiss"
    path = _copy(world, folder) / name
    whole = ItemIndex.load(path, {"kind": "flat", "effort": 1, "length_squared": 0.0})
    ItemIndex.build(np.zeros((10, whole.faiss.d), np.float32), IndexConfig(kind="flat")).save(path)
    return _restamp(world, folder, name)


def _copy(world: World, folder: Path) -> Path:
    shutil.copytree(world.bundles[1].path, folder)
    return folder


def _restamp(world: World, folder: Path, name: str) -> Path:
    manifest, path = world.bundles[1].manifest, folder / name
    entry = FileEntry(size_bytes=path.stat().st_size, sha256=sha256_of(path))
    changed = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    (folder / "manifest.json").write_text(changed.model_dump_json())
    return folder
