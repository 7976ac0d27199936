"""Fixtures shared by all tests: one Ray session, a store, and a small log with every kind of dirt, prepared once without Ray."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

# Tests are small: threads that wait for each other on two shared cores cost minutes. Before torch and faiss are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's default for its workers is 15: beside a test that waits for them they would starve on a busy machine.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seminar.artifacts import Artifact, Store
from seminar.config import DataConfig, PrepareConfig
from seminar.schema import EVENTS, ITEMS, QUERIES, USERS

HOUR_MS = 3_600_000
START_MS = 1_600_000_000_000
CATEGORIES = ("tea", "bread", "soap", "fruit", "cheese")
NUM_ITEMS = 60


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray on two CPUs for the whole test session; starting it takes about ten seconds, so never start another."""
    from seminar.config import RayConfig
    from workflows.runtime import ray_session

    with ray_session(RayConfig(address="local", num_cpus=2)):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_tables() -> dict[str, pa.Table]:
    """Canonical tables of 30 users, two of them without behaviours, and 60 items, two of them without metadata.

    Users like one category more than others, so there is something to learn. Dirt: rows of one moment, exact duplicates,
    exposures of requests with and without a behaviour, items without text or category, an item nobody touched.
    """
    draw = np.random.default_rng(11)
    events = [row for user in range(28) for row in _user_events(user, draw)]
    events += [_event("u28", 0, START_MS, None, "r-u28", 0), *events[::40]]
    items = [_item(number) for number in range(NUM_ITEMS) if number not in (7, 8)]
    items.append({"item_id": "i-untouched", "text": "never bought", "category": "tea", "image": None, "attributes": ["brand=b0"]})
    queries = [{"query_id": f"q-{category}", "text": category} for category in CATEGORIES]
    users = [{"user_id": f"u{user:02d}", "attributes": [f"age={20 + user % 4}"]} for user in range(0, 30, 2)]
    users.append({"user_id": "u29", "attributes": None})
    return {
        "events": pa.Table.from_pylist(events, schema=EVENTS),
        "items": pa.Table.from_pylist(items, schema=ITEMS),
        "queries": pa.Table.from_pylist(queries, schema=QUERIES),
        "users": pa.Table.from_pylist(users, schema=USERS),
    }


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, tiny_tables: dict[str, pa.Table]) -> DataConfig:
    """The tiny tables as a dataset folder, the events in three files."""
    folder = tmp_path_factory.mktemp("tiny-dataset")
    for name, table in tiny_tables.items():
        if name != "events":
            pq.write_table(table, folder / f"{name}.parquet")
    write_events(folder, tiny_tables["events"], 3)
    return DataConfig(source="tables", path=folder)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store for the whole session: holds `tiny_pairs`; tests that publish their own artefacts take `store`."""
    return Store(tmp_path_factory.mktemp("tiny-store"))


@pytest.fixture(scope="session")
def tiny_pairs(tiny_dataset: DataConfig, tiny_store: Store) -> Artifact:
    """The tiny dataset prepared in this process: four shards, chunks of 16."""
    from seminar.data.prepare import prepare_locally
    from seminar.datasets import open_source

    config = PrepareConfig(num_shards=4, chunk_length=16)
    return prepare_locally(open_source(tiny_dataset), tiny_dataset, config, tiny_store)


def write_events(folder: Path, events: pa.Table, num_files: int) -> None:
    """The events as `num_files` consecutive files of the canonical layout."""
    bounds = np.linspace(0, len(events), num_files + 1).astype(int)
    (folder / "events").mkdir()
    for number, (start, stop) in enumerate(pairwise(bounds)):
        pq.write_table(events.slice(start, stop - start), folder / "events" / f"{number:03d}.parquet")


def _user_events(user: int, draw: np.random.Generator) -> Iterator[dict[str, object]]:
    favourite = user % len(CATEGORIES)
    for request in range(1 + 3 * (user % 9)):
        time = START_MS + (user + 24 * request) * HOUR_MS
        category = favourite if draw.random() < 0.7 else int(draw.integers(len(CATEGORIES)))
        searched = draw.random() < 0.5
        query = f"q-{CATEGORIES[category]}" if searched else None
        name = f"r-u{user:02d}-{request}" if user % 3 else None
        size = int(draw.integers(1, 5))
        picks = draw.choice(NUM_ITEMS // len(CATEGORIES), size + 2, replace=False) * len(CATEGORIES) + category
        for place, item in enumerate(picks):
            yield _event(f"u{user:02d}", int(item), time, query, name, int(place < size))


def _event(user: str, item: int, time: int, query: str | None, request: str | None, label: int) -> dict[str, object]:
    row = (user, f"i{item:02d}", time, query, "typed" if query else "none", request, label)
    return dict(zip(EVENTS.names, row, strict=True))


def _item(number: int) -> dict[str, object]:
    category = None if number % 20 == 19 else CATEGORIES[number % len(CATEGORIES)]
    text = None if number % 10 == 3 else f"{CATEGORIES[number % len(CATEGORIES)]} number {number}"
    attributes = [f"brand=b{number % 7}", *([f"category={category}"] if category else [])]
    return {"item_id": f"i{number:02d}", "text": text, "category": category, "image": None, "attributes": attributes}
