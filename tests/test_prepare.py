import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seminar.artifacts import Store
from seminar.config import DataConfig, PrepareConfig, RayConfig, Settings
from seminar.data import prepare
from seminar.data.tables import TableSource
from seminar.datasets import open_source
from seminar.errors import DataError
from seminar.hashing import stable_hash
from seminar.schema import CATALOGUE_ITEMS, CATALOGUE_QUERIES, PAIRS, QUARANTINE
from seminar.sequences import read_histories
from tests.conftest import write_events
from workflows.__main__ import main

CONFIG = PrepareConfig(num_shards=4, chunk_length=16)


def prepared(data, store, continue_from=None, config=CONFIG):
    return prepare.prepare_locally(open_source(data), data, config, store, continue_from)


def copy_of(data, folder, events, num_files):
    """The same dataset in another folder with other event files."""
    folder.mkdir()
    for name in ("items", "queries", "users"):
        shutil.copy(data.path / f"{name}.parquet", folder)
    write_events(folder, events, num_files)
    return DataConfig(source="tables", path=folder)


def hashes(artifact, *, of=("shards", "items", "queries")):
    return {name: entry.sha256 for name, entry in artifact.manifest.files.items() if name.startswith(of)}


def stamps(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


def histories(artifact):
    return [read_histories(pq.read_table(path)) for path in sorted((artifact.path / "shards").iterdir())]


class Watched(TableSource):
    """A source that records which parts are read and fails at one of them."""

    def __init__(self, data, fails_at=None):
        super().__init__(data)
        self.fails_at, self.read = fails_at, []

    def events(self, part):
        if part == self.fails_at:
            raise RuntimeError("killed")
        self.read.append(part)
        return super().events(part)


def test_artefact_holds_what_its_contract_names(tiny_pairs):
    read = {name: pq.read_table(tiny_pairs.file(f"{name}.parquet")).schema for name in ("items", "queries", "quarantine")}
    assert read == {"items": CATALOGUE_ITEMS, "queries": CATALOGUE_QUERIES, "quarantine": QUARANTINE}
    shards = [f"shards/part-{shard:05d}.parquet" for shard in range(4)]
    assert set(tiny_pairs.manifest.files) == {"items.parquet", "queries.parquet", "quarantine.parquet", "report.json", *shards}
    assert all(pq.read_schema(tiny_pairs.file(name)) == PAIRS for name in shards)


def test_metrics_equal_a_count_of_the_raw_log(tiny_pairs, tiny_tables):
    distinct = {json.dumps(row) for row in tiny_tables["events"].to_pylist()}
    taken = [row for row in map(json.loads, distinct) if row["label"]]
    metrics = tiny_pairs.manifest.metrics
    assert metrics["behaviours"] == len(taken)
    assert metrics["origins"] == Counter(row["query_origin"] for row in taken)
    assert metrics["users"] == 30
    assert metrics["items"] == 61
    assert metrics["exposures"] + metrics["exposures_dropped"] == len(distinct) - len(taken)
    assert metrics["quarantined"] == {"repeats an event": len(tiny_tables["events"]) - len(distinct)}
    assert metrics["trimmed"] == 0
    assert json.loads(tiny_pairs.file("report.json").read_text())["history_length"]["max"] > 16


def test_every_user_is_in_the_shard_of_its_hash(tiny_pairs):
    for shard, found in enumerate(histories(tiny_pairs)):
        assert len(found)
        assert set((stable_hash(found.user_id) % np.uint64(4)).tolist()) == {shard}
        assert found.user_id == sorted(found.user_id)


def test_train_counts_leave_out_what_is_held_out(tiny_pairs):
    items = pq.read_table(tiny_pairs.file("items.parquet"))
    expected = np.zeros(len(items), int)
    for found in histories(tiny_pairs):
        for row in range(len(found)):
            np.add.at(expected, found.item[found.span(row)][: found.train_end[row]], 1)
    assert items["train_count"].to_pylist() == expected.tolist()
    assert 0 < expected.sum() < tiny_pairs.manifest.metrics["behaviours"]


def test_items_without_metadata_are_in_the_catalogue_and_marked(tiny_pairs):
    items = pq.read_table(tiny_pairs.file("items.parquet"))
    bare = items.filter(pa.compute.invert(items["has_metadata"]))
    assert bare["item_id"].to_pylist() == ["i07", "i08"]
    assert "i-untouched" in items["item_id"].to_pylist()


def test_user_without_behaviours_goes_through_the_whole_pipeline(tiny_pairs):
    lengths = {user: n for found in histories(tiny_pairs) for user, n in zip(found.user_id, found.lengths, strict=True)}
    assert lengths["u28"] == lengths["u29"] == 0
    assert min(n for user, n in lengths.items() if user < "u28") > 0


@pytest.mark.parametrize("num_files", [1, 7])
def test_sequences_do_not_depend_on_how_the_log_is_cut(tiny_dataset, tiny_tables, tiny_pairs, store, tmp_path, num_files):
    other = prepared(copy_of(tiny_dataset, tmp_path / "cut", tiny_tables["events"], num_files), store)
    assert hashes(other) == hashes(tiny_pairs)


def test_sequences_do_not_depend_on_the_order_of_work(tiny_dataset, tiny_pairs, store):
    source = open_source(tiny_dataset)
    draft = prepare.open_draft(store, source, tiny_dataset, CONFIG)
    parts = source.parts()
    for number in (2, 0, 1):
        prepare.bucket(source, parts[number], number, draft.path, CONFIG.num_shards)
    prepare.catalogue(source, draft.path, 3, CONFIG.num_shards)
    for shard in (3, 1, 0, 2):
        prepare.build(draft.path, shard, CONFIG)
    other = store.publish(draft, prepare.finish(draft.path, 3, CONFIG.num_shards))
    assert other.manifest.files == tiny_pairs.manifest.files
    assert other.manifest.metrics == tiny_pairs.manifest.metrics


def test_killed_run_resumes_at_the_missing_parts(tiny_dataset, tiny_pairs, store):
    parts = open_source(tiny_dataset).parts()
    with pytest.raises(RuntimeError, match="killed"):
        prepare.prepare_locally(Watched(tiny_dataset, fails_at=parts[1]), tiny_dataset, CONFIG, store)
    source = Watched(tiny_dataset)
    resumed = prepare.prepare_locally(source, tiny_dataset, CONFIG, store)
    assert source.read == parts[1:]
    assert resumed.manifest.files == tiny_pairs.manifest.files


def test_rerun_builds_only_the_missing_shards(tiny_dataset, tiny_pairs, store):
    source = Watched(tiny_dataset)
    draft = prepare.open_draft(store, source, tiny_dataset, CONFIG)
    for number, part in enumerate(source.parts()):
        prepare.bucket(source, part, number, draft.path, CONFIG.num_shards)
    prepare.catalogue(source, draft.path, 3, CONFIG.num_shards)
    for shard in range(CONFIG.num_shards):
        prepare.build(draft.path, shard, CONFIG)
    before = stamps(draft.path / "shards")
    (draft.path / "shards" / "part-00002.parquet").unlink()
    (draft.path / "shards" / "_part-00002.parquet.half-written").write_text("killed here")
    resumed = prepare.prepare_locally(source, tiny_dataset, CONFIG, store)
    after = stamps(resumed.path / "shards")
    assert {name for name in after if after[name] != before[name]} == {"part-00002.parquet"}
    assert len(source.read) == 3
    assert resumed.manifest.files == tiny_pairs.manifest.files


def test_finished_artefact_is_found_and_nothing_is_read(tiny_dataset, tiny_pairs, tiny_store):
    source = Watched(tiny_dataset)
    again = prepare.prepare_locally(source, tiny_dataset, CONFIG, tiny_store)
    assert (again.version, source.read) == (tiny_pairs.version, [])


def test_version_depends_on_content_and_settings_not_on_where_the_log_lies(tiny_dataset, tiny_tables, store, tmp_path):
    def version(data, config=CONFIG):
        return prepare.open_draft(store, open_source(data), data, config).version

    moved = shutil.copytree(tiny_dataset.path, tmp_path / "moved")
    grown = copy_of(tiny_dataset, tmp_path / "grown", pa.concat_tables([tiny_tables["events"]] * 2), 3)
    assert version(DataConfig(source="tables", path=moved)) == version(tiny_dataset)
    assert version(tiny_dataset, PrepareConfig(num_shards=5)) != version(tiny_dataset)
    assert version(grown) != version(tiny_dataset)


def test_repeats_across_files_are_dropped_and_quarantined(tiny_dataset, tiny_tables, tiny_pairs, store, tmp_path):
    events = tiny_tables["events"]
    twice = prepared(copy_of(tiny_dataset, tmp_path / "twice", pa.concat_tables([events, events]), 2), store)
    assert hashes(twice) == hashes(tiny_pairs)
    quarantine = pq.read_table(twice.file("quarantine.parquet"))
    across = quarantine.filter(pa.compute.equal(quarantine["row"], -1))
    assert set(across["file"].to_pylist()) == {"events/001.parquet"}
    assert json.loads(across["content"][0].as_py()).keys() == set(events.schema.names)


def test_continuation_keeps_old_row_numbers_and_has_its_own_version(tiny_dataset, tiny_tables, tiny_pairs, store, tmp_path):
    new = [{**tiny_tables["events"].slice(0, 1).to_pylist()[0], "item_id": name} for name in ("i00-new", "a-new")]
    events = pa.concat_tables([tiny_tables["events"], pa.Table.from_pylist(new, schema=tiny_tables["events"].schema)])
    data = copy_of(tiny_dataset, tmp_path / "tonight", events, 3)
    night, alone = prepared(data, store, continue_from=tiny_pairs), prepared(data, store)
    before, after = (pq.read_table(artifact.file("items.parquet"))["item_id"].to_pylist() for artifact in (tiny_pairs, night))
    assert after == [*before, "a-new", "i00-new"]
    assert night.version != alone.version
    assert night.manifest.inputs["continues"] == tiny_pairs.ref


def test_ray_job_equals_one_process_file_by_file(ray_session, tiny_dataset, tiny_pairs, tmp_path):
    from workflows import prepare as job

    settings = Settings(workdir=tmp_path, data=tiny_dataset, prepare=CONFIG)
    made = job.run(settings, Store(tmp_path))
    assert made.manifest.files == tiny_pairs.manifest.files
    assert made.manifest.metrics == tiny_pairs.manifest.metrics
    assert made.version == tiny_pairs.version == Store(tmp_path).current("pairs")


def test_ray_job_resumes_at_the_missing_shard(ray_session, tiny_dataset, tiny_pairs, store):
    from workflows import prepare as job

    source = open_source(tiny_dataset)
    draft = prepare.open_draft(store, source, tiny_dataset, CONFIG)
    for number, part in enumerate(source.parts()):
        prepare.bucket(source, part, number, draft.path, CONFIG.num_shards)
    prepare.catalogue(source, draft.path, 3, CONFIG.num_shards)
    for shard in (0, 1, 3):
        prepare.build(draft.path, shard, CONFIG)
    before = stamps(draft.path / "shards")
    made = job.run(Settings(workdir=store.root, data=tiny_dataset, prepare=CONFIG), store)
    assert before.items() <= stamps(made.path / "shards").items()
    assert made.manifest.files == tiny_pairs.manifest.files


def reject(row):
    raise DataError(f"row {row['number']} is wrong")


def test_an_error_of_a_worker_arrives_as_its_sentence(ray_session):
    from workflows.runtime import stream

    with pytest.raises(DataError, match=r"^row 3 is wrong$"):
        list(stream(reject, [{"number": 3}], RayConfig()))


def test_mistyped_job_is_answered_with_the_near_name(capsys):
    assert main(["pretain", "--config", "x.toml"]) == 2
    assert "did you mean 'pretrain'?" in capsys.readouterr().err


def test_help_names_every_job(capsys):
    assert main(["--help"]) == 0
    assert "fit-codebooks" in capsys.readouterr().out
