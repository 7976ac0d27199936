"""The four jobs of candidate generation on a tiny log: what they publish, what they go on from, what they refuse.

A fit costs 10 s and more to start, so all tests share the towers of one story; some items are in nobody's training history.
"""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from seminar.artifacts import Artifact, Store
from seminar.bundle import PROPOSER, Bundle
from seminar.candidates.full_ranking import NEW_ONLY, by_tower, rank_catalogue
from seminar.candidates.index import ItemIndex
from seminar.candidates.neighbours import ItemNeighbours
from seminar.candidates.proposer import FILES, Past, Proposer
from seminar.candidates.report import NAMES
from seminar.candidates.tower import DualTower, item_vectors
from seminar.candidates.two_stage import TWO_STAGE
from seminar.channels import VectorTables, encoders_of
from seminar.config import (
    DataConfig,
    EvaluateRetrieverConfig,
    IndexConfig,
    PrepareConfig,
    PretrainRetrieverConfig,
    RayConfig,
    RetrieverConfig,
    Settings,
    TrainConfig,
    TrainRetrieverConfig,
)
from seminar.data.prepare import prepare_locally
from seminar.datasets import open_source
from seminar.errors import ArtifactError, ConfigError, VersionMismatch
from seminar.evaluate.evaluation import FULL
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import held_out_pairs
from seminar.sequences import Histories, read_histories
from seminar.train.build import shard_paths
from seminar.train.retriever import TOWERS, fresh_retriever, fresh_towers, load_retriever, window_lane
from seminar.train.training import Optimisers, train_step
from tests.bundles import make_bundle, make_vectors
from workflows import build_index, evaluate_retriever, pretrain_retriever, train_retriever
from workflows.__main__ import main

SMALL = RetrieverConfig(dim=16, num_layers=1, num_heads=2, num_token_rows=64, window=16, dropout=0.1)
STEPS: dict[str, Any] = {"steps": 4, "lanes": 2, "checkpoint_every": 3, "windows_per_lane": 4, "learning_rate": 0.01}
NEW_ITEMS = [f"i{number}" for number in range(48, 60)]


class Killed(BaseException):
    """What a killed process looks like to the code it kills: nothing may handle it."""


@dataclass(frozen=True)
class Place:
    """A store with the log it was filled from."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    def settings(self, **sections: Any) -> Settings:
        """Sections are settings that differ from the small ones."""
        return Settings(
            workdir=self.store.root,
            data=DataConfig(source="tables", path=self.root / "log"),
            retriever=SMALL.model_copy(update=sections.get("retriever", {})),
            pretrain_retriever=PretrainRetrieverConfig(**STEPS),
            train_retriever=TrainRetrieverConfig(**STEPS, **sections.get("train_retriever", {})),
            index=IndexConfig(**{"probe_users": 9, **sections.get("index", {})}),
            evaluate_retriever=EvaluateRetrieverConfig(
                **{"neighbours": 20, "candidates": 8, "ranked_users": 1000, **sections.get("evaluate_retriever", {})}
            ),
            ray=RayConfig(address="local"),
        )

    def copy(self, root: Path) -> "Place":
        shutil.copytree(self.root, root)
        return Place(root)

    def fill(self, tables: dict[str, pa.Table]) -> None:
        """Write the log, prepare and embed it."""
        (self.root / "log").mkdir()
        for name, table in tables.items():
            pq.write_table(table, self.root / "log" / f"{name}.parquet")
        data = self.settings().data
        pairs = prepare_locally(open_source(data), data, PrepareConfig(num_shards=4, chunk_length=16), self.store)
        make_vectors(self.store, pairs)

    def histories(self) -> list[Histories]:
        """One a shard."""
        return [read_histories(pq.read_table(path)) for path in shard_paths(self.store.open("pairs"))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_tables: dict[str, pa.Table]) -> Place:
    """The tiny log in which new items are taken in a user's last request alone; a bundle without an index is in use."""
    place = Place(tmp_path_factory.mktemp("retriever"))
    events = tiny_tables["events"]
    last = dict(events.group_by("user_id").aggregate([("time_ms", "max")]).to_pydict())
    ends = dict(zip(last["user_id"], last["time_ms_max"], strict=True))
    is_last = pc.equal(events["time_ms"], pa.array([ends[user] for user in events["user_id"].to_pylist()]))
    is_new = pc.is_in(events["item_id"], pa.array(NEW_ITEMS))
    place.fill({**tiny_tables, "events": events.filter(pc.or_(is_last, pc.invert(is_new)))})
    make_bundle(place.store, place.store.open("pairs"), place.store.open("vectors"))
    return place


@pytest.fixture(scope="module")
def trained(ray_session: None, prepared: Place) -> Place:
    """Towers pretrained, then trained."""
    pretrain_retriever.run(prepared.settings(), prepared.store)
    train_retriever.run(prepared.settings(), prepared.store)
    return prepared


@pytest.fixture(scope="module")
def finished(trained: Place) -> Place:
    """Indexed, and judged beside other towers of random weights."""
    store = trained.store
    for kind in ("sasrec", "two_tower"):
        untrained(store, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_index, "BLOCK", 16)
        build_index.run(trained.settings(), store)
    evaluate_retriever.run(trained.settings(), store)
    return trained


def untrained(store: Store, kind: str, **changes: Any) -> Artifact:
    """A published tower of random weights."""
    vectors, config = store.open("vectors"), SMALL.model_copy(update={"kind": kind, **changes})
    tower = TOWERS[kind](config, VectorTables.load(vectors), torch.Generator().manual_seed(3))
    name = "retriever" if kind == "mmsrec" else kind
    recorded = {"retriever": config.model_dump(mode="json"), "encoders": encoders_of(vectors)}
    draft = store.draft(name, {"pairs": store.open("pairs"), "vectors": vectors}, recorded)
    save_file(tower.state_dict(), draft.path / f"{name}.safetensors")
    return store.publish(draft)


def first_loss(place: Place, tower: DualTower, config: TrainConfig) -> float:
    """Of the first step from these weights, in this process."""
    shards = shard_paths(place.store.open("pairs"))
    batches = {lane: window_lane(shards, config, SMALL.window, lane).batch(0) for lane in range(config.lanes)}
    return train_step(tower.train(), batches, Optimisers(tower, config), step=0, config=config).losses["total"]


def curve(artifact: Artifact) -> pa.Table:
    return pq.read_table(artifact.file("curve.parquet"))


def test_pretraining_publishes_towers_that_were_aligned(trained: Place) -> None:
    store, settings = trained.store, trained.settings()
    towers, vectors = store.open("towers"), store.open("vectors")
    assert sorted(towers.manifest.files) == ["curve.parquet", "towers.safetensors"]
    assert {name: ref.version for name, ref in towers.manifest.inputs.items()} == {
        "pairs": store.current("pairs"),
        "vectors": vectors.version,
    }
    fresh = fresh_towers(settings.retriever, settings.pretrain_retriever, vectors.path)
    state = load_file(towers.file("towers.safetensors"))
    assert state.keys() == fresh.state_dict().keys()
    moved = {name for name, value in fresh.named_parameters() if not torch.equal(value, state[name])}
    assert {"channels.project_text", "channels.tokens.weight", "fusion.modality", "log_temperature"} <= moved
    losses = curve(towers)
    assert len(losses) == 4
    assert losses["align"].to_pylist() == losses["loss"].to_pylist()
    assert losses["loss"][0].as_py() == pytest.approx(first_loss(trained, fresh, settings.pretrain_retriever), rel=1e-5)


def test_training_starts_from_the_towers(trained: Place) -> None:
    store, settings = trained.store, trained.settings()
    retriever, vectors, towers = (store.open(kind) for kind in ("retriever", "vectors", "towers"))
    assert retriever.manifest.inputs["towers"].version == towers.version
    start = towers.file("towers.safetensors")
    pretrained, scratch = (
        first_loss(
            trained, fresh_retriever(settings.retriever, settings.train_retriever, vectors.path, path), settings.train_retriever
        )
        for path in (start, None)
    )
    losses = curve(retriever)["loss"].to_pylist()
    assert losses[0] == pytest.approx(pretrained, rel=1e-5)
    assert abs(pretrained - scratch) > 1e-3
    assert np.isfinite(losses).all()
    state = load_file(retriever.file("retriever.safetensors"))
    assert state.keys() == load_file(start).keys()
    assert not torch.equal(state["fusion.mask"], load_file(start)["fusion.mask"])


def test_an_id_tower_is_published_beside_the_one_that_is_served(trained: Place, tmp_path: Path) -> None:
    place = trained.copy(tmp_path / "place")
    made = train_retriever.run(place.settings(retriever={"kind": "sasrec"}, train_retriever={"seed": 1}), place.store)
    assert (made.manifest.kind, set(made.manifest.inputs)) == ("sasrec", {"pairs", "vectors"})
    assert place.store.open("retriever").manifest == trained.store.open("retriever").manifest
    tower = load_retriever(made, place.store.open("vectors"))
    assert isinstance(tower, TOWERS["sasrec"])


def test_training_goes_on_from_the_tower_of_another_data_set(
    trained: Place, tmp_path: Path, tiny_tables: dict[str, pa.Table]
) -> None:
    """A catalogue of 41 items, and a longer window, which starts fresh."""
    place = Place(tmp_path)
    few = {
        name: table.filter(pc.less(table["item_id"], "i40")) for name, table in tiny_tables.items() if name in ("events", "items")
    }
    place.fill({**tiny_tables, **few})
    origin = trained.store.open("retriever")
    settings = place.settings(retriever={"window": 20}, train_retriever={"start": origin.path})
    made = train_retriever.run(settings, place.store)
    assert made.manifest.config["start"] == origin.manifest.checksum
    assert set(made.manifest.inputs) == {"pairs", "vectors"}
    vectors = place.store.open("vectors")
    assert VectorTables.load(vectors).num_items == 41
    starts = (origin.file("retriever.safetensors"), None)
    config = settings.train_retriever
    shards = shard_paths(place.store.open("pairs"))
    losses = []
    for start in starts:
        tower = fresh_retriever(settings.retriever, config, vectors.path, start).train()
        batches = {lane: window_lane(shards, config, 20, lane).batch(0) for lane in range(config.lanes)}
        losses.append(train_step(tower, batches, Optimisers(tower, config), step=0, config=config).losses["total"])
    assert curve(made)["loss"][0].as_py() == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_training_refuses_what_does_not_fit(trained: Place, tmp_path: Path) -> None:
    store = trained.store
    with pytest.raises(ConfigError, match=r"retriever\.kind: got sasrec, expected mmsrec, which pretrains"):
        pretrain_retriever.run(trained.settings(retriever={"kind": "sasrec"}), store)
    with pytest.raises(
        VersionMismatch, match=r"towers .*'dim': 16.*'dim': 32.*run pretrain-retriever with this retriever section"
    ):
        train_retriever.run(trained.settings(retriever={"dim": 32}), store)
    for start, got in ((tmp_path, f"got {tmp_path}, expected a published artefact"), (store.open("vectors").path, "got vectors")):
        with pytest.raises(ConfigError, match=rf"train_retriever\.start: {got}"):
            train_retriever.run(trained.settings(train_retriever={"start": start}), store)
    place = trained.copy(tmp_path / "place")
    draft = place.store.draft("vectors", {"pairs": place.store.open("pairs")}, {"other": True})
    shutil.copyfile(store.open("vectors").file("vectors.safetensors"), draft.path / "vectors.safetensors")
    place.store.publish(draft)
    with pytest.raises(VersionMismatch, match=rf"made from vectors {store.current('vectors')}.*run pretrain-retriever"):
        train_retriever.run(place.settings(), place.store)
    with pytest.raises(VersionMismatch, match=r"run train-retriever again"):
        evaluate_retriever.run(place.settings(), place.store)


def test_each_job_says_what_to_run_before_it(prepared: Place, tmp_path: Path) -> None:
    place = Place(tmp_path / "place")
    for kind in ("pairs", "vectors"):
        shutil.copytree(prepared.store.root / kind, place.store.root / kind)
    for job, before in ((train_retriever, "pretrain-retriever"), (build_index, "train-retriever")):
        with pytest.raises(ArtifactError, match=f"run `seminar {before}`"):
            job.run(place.settings(), place.store)
    with pytest.raises(ArtifactError, match="run `seminar train-retriever`"):
        evaluate_retriever.run(place.settings(), place.store)


def under_queries(place: Place) -> dict[int, Counter[int]]:
    """How often each item was taken under each query before its user's training ended, one behaviour after another."""
    taken: dict[int, Counter[int]] = {}
    for users in place.histories():
        for row in range(len(users)):
            for position in range(int(users.train_end[row])):
                query, item = (int(column[users.offsets[row] + position]) for column in (users.query, users.item))
                if query >= 0:
                    taken.setdefault(query, Counter())[item] += 1
    return taken


def test_the_index_holds_every_item_and_what_was_taken_under_each_query(finished: Place) -> None:
    store = finished.store
    index, tower = store.open("index"), load_retriever(store.open("retriever"), store.open("vectors"))
    assert sorted(index.manifest.files) == sorted(FILES)
    assert index.manifest.metrics == {"items": 61, "kind": "flat", "recall": 1.0, "recall_at": 100}
    proposer = Proposer.load(index.path)
    stored = proposer.index.faiss.reconstruct_n(0, 61)
    np.testing.assert_allclose(stored, item_vectors(tower), atol=1e-5)
    for query, taken in under_queries(finished).items():
        expected = sorted(taken, key=lambda item: (-taken[item], item))
        assert proposer.query_items.of(query).tolist() == expected[:50]
    nothing = np.empty(0, np.int64)
    assert len(proposer.propose(Past(nothing, nothing, nothing), 0, 20).item_C) == 20


def test_the_bundle_in_use_gets_the_index(finished: Place, tmp_path: Path) -> None:
    store = finished.store
    now, before = (Bundle.load(store.open("bundle", version).path) for version in ("current", store.previous("bundle")[0]))
    assert (now.proposes, before.proposes) == (True, False)
    inputs = {name: ref.version for name, ref in now.manifest.inputs.items()}
    assert inputs == {**{n: r.version for n, r in before.manifest.inputs.items()}, "index": store.current("index")}
    for name in FILES:
        assert (now.path / PROPOSER / name).read_bytes() == store.open("index").file(name).read_bytes()


def test_a_bundle_of_other_vectors_is_left_alone(trained: Place, tmp_path: Path) -> None:
    place = trained.copy(tmp_path / "place")
    store, config = place.store, {**place.store.open("vectors").manifest.config, "lineage": ["grown"]}
    draft = store.draft("vectors", {"pairs": store.open("pairs")}, config)
    shutil.copyfile(store.open("vectors").file("vectors.safetensors"), draft.path / "vectors.safetensors")
    in_use, grown = store.current("bundle"), store.publish(draft)
    index = build_index.run(place.settings(), store)
    assert index.manifest.inputs["vectors"].version == grown.version
    assert (store.current("index"), store.current("bundle")) == (index.version, in_use)


def test_an_interrupted_index_is_finished_from_its_missing_parts(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_index, "BLOCK", 16)
    store, settings = trained.store, trained.settings(index={"query_items": 7, "kind": "hnsw"})
    pointers = [store.root / kind / "current.json" for kind in ("index", "bundle")]
    in_use = [pointer.read_text() if pointer.is_file() else None for pointer in pointers]

    def dies(*rest: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ItemIndex, "build", dies)
        with pytest.raises(Killed):
            build_index.run(settings, store, current=False)
    (draft,) = (store.root / "index").glob(".draft-*")
    parts = {folder: sorted((draft / folder).iterdir()) for folder in ("_vectors", "_queries")}
    assert [path.name for path in parts["_vectors"]] == ["000000000.npy", "000000016.npy", "000000032.npy", "000000048.npy"]
    assert len(parts["_queries"]) == 4
    # What stays is marked: whoever makes it again removes the mark.
    for path in parts["_vectors"][1:3]:
        np.save(path, -np.load(path))
    for path in (parts["_vectors"][0], parts["_vectors"][3], *parts["_queries"][1:]):
        path.unlink()
    marked = pa.table({"query": [0], "item": [60], "count": [100_000]}, schema=pq.read_schema(parts["_queries"][0]))
    pq.write_table(marked, parts["_queries"][0])
    index = build_index.run(settings, store, current=False)

    proposer = Proposer.load(index.path)
    expected = item_vectors(load_retriever(store.open("retriever"), store.open("vectors")))
    expected[16:48] *= -1
    np.testing.assert_allclose(proposer.index.faiss.reconstruct_n(0, 61)[:, :-1], expected, atol=1e-5)
    assert proposer.index.kind == "hnsw"
    assert index.manifest.metrics["recall"] > 0.95
    most = proposer.query_items.of(0)
    assert (len(most), most[0]) == (7, 60)
    assert sorted(index.manifest.files) == sorted(FILES)
    assert [pointer.read_text() if pointer.is_file() else None for pointer in pointers] == in_use


def test_only_the_tower_of_contents_is_indexed(trained: Place, tmp_path: Path) -> None:
    place = trained.copy(tmp_path / "place")
    with pytest.raises(ConfigError, match=r"got two_tower, expected mmsrec"):
        build_index.run(place.settings(), place.store, retriever=untrained(place.store, "two_tower"))


def all_rows(report: Artifact) -> list[dict[str, Any]]:
    return pq.read_table(report.file("rows.ranked.parquet")).to_pylist()


def test_the_report_holds_every_protocol_and_scorer(finished: Place) -> None:
    report = finished.store.open("retriever_report")
    assert {"report.md", "report.json", "rows.ranked.parquet"} <= report.manifest.files.keys()
    assert set(report.manifest.inputs) == {"retriever", "pairs", "vectors", "sasrec", "two_tower", "model", "index"}
    document = json.loads(report.file("report.json").read_text())
    text = report.file("report.md").read_text()
    scorers: dict[str, set[str]] = {}
    for line in document["results"]:
        scorers.setdefault(line["protocol"], set()).add(line["scorer"])
    stages = ("most popular", "in-history", "in-history and of the query", "of MMSRec", "of all sources")
    ranked = {f"8 {what}, then SEMINAR" for what in stages}
    assert scorers == {FULL: set(NAMES.values()), NEW_ONLY: set(NAMES.values()), TWO_STAGE: {"MMSRec alone", *ranked}}
    for protocol, names in scorers.items():
        assert f"## {protocol[0].upper()}{protocol[1:]} ranking" in text
        assert all(f"| {name} |" in text for name in names)
    assert {line["slice"] for line in document["results"] if line["protocol"] == FULL} >= {"unseen", "repeat"}
    assert "61 items, flat: recall@100 1.0000 against exact search" in text
    assert document["versions"] == {name: ref.version for name, ref in report.manifest.inputs.items()}


def test_rows_of_the_report_are_those_of_this_process(finished: Place) -> None:
    store, settings = finished.store, finished.settings()
    pool = ItemPool.of(pq.read_table(store.open("pairs").file("items.parquet")))
    users, items = [], []
    for shard in finished.histories():
        for row in range(len(shard)):
            training = shard.item[shard.offsets[row] : shard.offsets[row] + shard.train_end[row]]
            items += training.tolist()
            users += [shard.user_id[row]] * len(training)
    number = {user: i for i, user in enumerate(dict.fromkeys(users))}
    neighbours = ItemNeighbours.fit(np.array([number[user] for user in users]), np.array(items), 61, 20, 10.0)

    def by_neighbours(shard: Histories, pairs: Any) -> Any:
        return neighbours.scores([shard.item[shard.offsets[p.row] :][: p.start] for p in pairs])

    vectors = store.open("vectors")
    towers = {NAMES[kind]: store.open("retriever" if kind == "mmsrec" else kind) for kind in TOWERS}
    scorers = {name: by_tower(load_retriever(tower, vectors)) for name, tower in towers.items()}
    scorers[NAMES["neighbours"]] = by_neighbours
    expected = []
    for shard in finished.histories():
        protocol = settings.evaluate.model_copy(update={"one_per_user": False})
        expected += rank_catalogue(shard, pool, held_out_pairs(shard, protocol), scorers).ranked.to_pylist()
    found = [row for row in all_rows(store.open("retriever_report")) if row["scorer"] in scorers and row["protocol"] != TWO_STAGE]

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["user_id"], row["position"], row["protocol"], row["scorer"]

    assert sorted(found, key=order) == sorted(expected, key=order)
    assert sum(row["protocol"] == NEW_ONLY for row in found) > 2 * len(scorers)


def test_two_stages_rank_one_behaviour_of_each_user(finished: Place) -> None:
    rows = [row for row in all_rows(finished.store.open("retriever_report")) if row["protocol"] == TWO_STAGE]
    of_user = Counter((row["user_id"], row["scorer"]) for row in rows)
    assert set(of_user.values()) == {1}
    protocol = finished.settings().evaluate.model_copy(update={"one_per_user": True})
    drawn = {(shard.user_id[p.row], p.position) for shard in finished.histories() for p in held_out_pairs(shard, protocol)}
    assert {(row["user_id"], row["position"]) for row in rows} == drawn
    assert all(row["above"] + row["tied"] <= row["others"] <= 60 for row in rows)


def test_an_interrupted_evaluation_scores_the_missing_shards(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without item neighbours and without a ranker."""
    place = finished.copy(tmp_path / "place")
    settings = place.settings(evaluate_retriever={"neighbours": 0, "ranked_users": 0})

    def dies(*rest: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_retriever, "summarise", dies)
        with pytest.raises(Killed):
            evaluate_retriever.run(settings, place.store)
    (draft,) = (place.store.root / "retriever_report").glob(".draft-*")
    marks = sorted((draft / "_rows").glob("*.json"))
    assert len(marks) == 4
    kept, missing = marks[-1].stem, marks[0].stem
    table = pq.read_table(draft / "_rows" / f"{kept}.ranked.parquet")
    pq.write_table(table.slice(0, 0), draft / "_rows" / f"{kept}.ranked.parquet")  # a mark: nobody scores it again
    marks[0].unlink()
    pq.write_table(table.slice(0, 0), draft / "_rows" / f"{missing}.ranked.parquet")
    report = evaluate_retriever.run(settings, place.store)
    users = {
        shard.stem: set(h.user_id) for shard, h in zip(shard_paths(place.store.open("pairs")), place.histories(), strict=True)
    }
    found = {row["user_id"] for row in all_rows(report)}
    assert len(table)
    assert not found & users[kept]
    assert found & users[missing]
    assert {row["scorer"] for row in all_rows(report)} == set(NAMES.values()) - {NAMES["neighbours"]}
    assert {row["protocol"] for row in all_rows(report)} == {FULL, NEW_ONLY}


def test_a_second_run_of_every_job_finds_what_is_finished(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, settings = finished.store, finished.settings()
    kinds = {
        "pretrain-retriever": "towers",
        "train-retriever": "retriever",
        "build-index": "index",
        "evaluate-retriever": "retriever_report",
    }
    versions = {kind: store.versions(kind) for kind in (*kinds.values(), "bundle")}
    current = {kind: store.current(kind) for kind in versions}
    (tmp_path / "small.toml").write_text(_toml(settings))
    for job, kind in kinds.items():
        assert main([job, "--config", str(tmp_path / "small.toml")]) == 0
        assert f"{job}: {store.open(kind).path}" in capsys.readouterr().out
    assert {kind: store.versions(kind) for kind in versions} == versions
    assert {kind: store.current(kind) for kind in versions} == current


def _toml(settings: Settings) -> str:
    """What differs from the defaults, as a file."""
    lines = [f"workdir = {json.dumps(str(settings.workdir))}"]
    for name, section in settings.model_dump(mode="json", exclude={"workdir"}, exclude_defaults=True).items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(lines)
