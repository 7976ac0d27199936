"""The nightly refresh: killed anywhere it is finished by a rerun, and a bad night changes nothing that is in use.

A log that grows: new events every night, and items that did not exist before the first one. The service is a real one, with two
replicas.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from ray import serve

from seminar.artifacts import Artifact, Store
from seminar.bundle import PROPOSER, Bundle, assemble
from seminar.candidates.proposer import Past, Proposer
from seminar.cli import main as seminar_main
from seminar.codes.codebook import Stamp
from seminar.codes.codebook_fit import fit
from seminar.config import (
    CodebookConfig,
    DataConfig,
    EmbedConfig,
    EvaluateConfig,
    PrepareConfig,
    RefreshConfig,
    ServeConfig,
    Settings,
)
from seminar.data.prepare import prepare_locally
from seminar.datasets import open_source
from seminar.errors import ConfigError, SeminarError
from seminar.nightly import night_report
from seminar.nightly.ledger import STEPS, Ledger, NightFailed, Record, name_of_night, night_lock
from seminar.nightly.pointers import POINTERS, current_versions, move_back, move_pointers, restore
from seminar.nightly.refresh import Gate, Measured, Probe, coverage_drop, found_share, judge, quarantined_share, reciprocal_rank
from seminar.nightly.strain import strain
from seminar.retrieval import rescored
from seminar.retrieval.regime import Choice
from seminar.scorer import Retrieved, ScoringHistory, Targets, TwoStageScorer
from serve.deploy import DeployError, Serve, config_of, served, swap
from tests.bundles import CODEBOOKS, make_bundle, make_index, make_retriever, make_vectors
from tests.conftest import HOUR_MS, START_MS
from workflows import live_service, refresh
from workflows.__main__ import main as workflows_main
from workflows.candidate import Candidate
from workflows.live_service import LiveService
from workflows.runtime import REPOSITORY

NEW_ITEMS = ["i56", "i57", "i58", "i59"]
FIRST_NIGHT, SECOND_NIGHT, THIRD_NIGHT, FOURTH_NIGHT = 300, 400, 500, 610
"""Hours of the log that a night sees; the bundle in use before the first has seen 200."""
EASY = {"min_recall": 0.5, "max_recall_drop": 0.5, "max_score_change": 0.5}


class Killed(BaseException):
    """What a killed process looks like to the code it kills: nothing may handle it."""


@dataclass(frozen=True)
class Place:
    """A store and the log beside it; copied for every story, as whole folders."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    def copy(self, root: Path) -> "Place":
        shutil.copytree(self.root, root)
        return Place(root)

    def settings(self, hours: int, **changes: Any) -> Settings:
        until = datetime.fromtimestamp((START_MS + hours * HOUR_MS) / 1000, UTC)
        return Settings(
            workdir=self.store.root,
            data=DataConfig(source="tables", path=self.root / "log", until=until),
            prepare=PrepareConfig(num_shards=2, chunk_length=16),
            embed=EmbedConfig(image_encoder="none"),
            codebooks=CODEBOOKS,
            evaluate=EvaluateConfig(num_negatives=15),
            serve=ServeConfig(max_history_gib=0.1, overfetch=2, port=changes.pop("port", 8000)),
            refresh=RefreshConfig(**{"run_id": f"night-{hours}", **EASY, **changes}),
        )

    def night(self, hours: int, **changes: Any) -> Artifact:
        return refresh.run(self.settings(hours, **changes), self.store)

    def record(self, hours: int) -> Record:
        return Record.model_validate_json((self.store.root / "refresh" / f"night-{hours}" / "ledger.json").read_text())

    def state(self, hours: int) -> dict[str, Any]:
        """Everything a night leaves behind but times."""
        kinds = {kind: {v: self.store.open(kind, v).manifest.checksum for v in self.store.versions(kind)} for kind in POINTERS}
        pointers = {kind: (self.store.current(kind), self.store.previous(kind)) for kind in POINTERS}
        record = self.record(hours).model_dump(exclude={"began"})
        return {"artefacts": kinds, "pointers": pointers, "record": _without_times(record)}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in ("seconds", "finished", "reused")}
    return value


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory, tiny_tables: dict[str, pa.Table]) -> Place:
    """A bundle in use, made from a log without the new items; then the log grows."""
    place = Place(tmp_path_factory.mktemp("before"))
    log = place.root / "log"
    log.mkdir()
    is_new = pc.is_in(tiny_tables["events"]["item_id"], pa.array(NEW_ITEMS))
    early = pc.less(tiny_tables["events"]["time_ms"], START_MS + 200 * HOUR_MS)
    pq.write_table(tiny_tables["events"].filter(pc.invert(pc.and_(is_new, early))), log / "events.parquet")
    for name in ("queries", "users"):
        pq.write_table(tiny_tables[name], log / f"{name}.parquet")
    items = tiny_tables["items"]
    pq.write_table(items.filter(pc.invert(pc.is_in(items["item_id"], pa.array(NEW_ITEMS)))), log / "items.parquet")
    settings = place.settings(200)
    pairs = prepare_locally(open_source(settings.data), settings.data, settings.prepare, place.store)
    vectors = make_vectors(place.store, pairs, settings.embed)
    index = make_index(place.store, make_retriever(place.store, pairs, vectors), vectors, pairs)
    make_bundle(place.store, pairs, vectors, index)
    pq.write_table(items, log / "items.parquet")
    return place


@pytest.fixture(scope="module")
def after(ray_session: None, before: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The first night, uninterrupted."""
    place = before.copy(tmp_path_factory.mktemp("after") / "place")
    place.night(FIRST_NIGHT)
    return place


def killed(night: Callable[[], object], owner: type, name: str, dying: Callable[..., None]) -> None:
    """Run a night that dies where `dying` replaces a method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            night()


def killed_at(step: str, night: Callable[[], object], *, recorded: bool = True) -> None:
    """Run a night that dies when `step` has done its work, before or after the ledger says so."""
    finish = Ledger.finish

    def dying(ledger: Ledger, name: str, *rest: Any) -> None:
        if name == step and not recorded:
            raise Killed
        finish(ledger, name, *rest)
        if name == step:
            raise Killed

    killed(night, Ledger, "finish", dying)


@pytest.fixture(scope="module")
def killed_everywhere(ray_session: None, before: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    """The first night, killed twice at every step and rerun each time. A copy of what the death after each late step left."""
    place = before.copy(tmp_path_factory.mktemp("killed") / "place")
    copies = {}
    for step in STEPS:
        for recorded in (False, True):
            killed_at(step, partial(place.night, FIRST_NIGHT), recorded=recorded)
        if STEPS.index(step) >= STEPS.index("bundle"):
            copies[step] = place.copy(tmp_path_factory.mktemp(f"after-{step}") / "place")
    place.night(FIRST_NIGHT)
    return {**copies, "end": place}


def test_night_makes_a_bundle_of_the_grown_log_current(before: Place, after: Place) -> None:
    old, new = (Bundle.load(place.store.open("bundle").path) for place in (before, after))
    assert new.item_ids == [*old.item_ids, *NEW_ITEMS]
    assert new.fingerprint == old.fingerprint
    record = after.record(FIRST_NIGHT)
    assert record.state == "done"
    assert list(record.steps) == list(STEPS)
    made = after.store.open("bundle").manifest.inputs
    assert {kind: after.store.current(kind) for kind in POINTERS[:-1]} == {kind: made[kind].version for kind in POINTERS[:-1]}
    assert record.steps["pairs"].outcome["new"]["items"] == len(NEW_ITEMS)
    assert record.steps["pairs"].outcome["new"]["behaviours"] > 0


def test_the_retriever_in_use_proposes_the_new_items(before: Place, after: Place) -> None:
    """The night's index is of the same tower over the grown catalogue, inside the bundle, and held to its gate."""
    old, new = (Proposer.load(place.store.open("bundle").path / PROPOSER) for place in (before, after))
    grown = old.index.num_items + len(NEW_ITEMS)
    assert new.index.num_items == grown
    past = Past(np.arange(4), np.full(4, -1), np.arange(4))
    rows, _ = new.index.search(new.user(past), grown)
    before_rows, _ = old.index.search(old.user(past), grown)
    assert set(rows[0].tolist()) == set(range(grown))
    assert set(range(old.index.num_items, grown)) - set(before_rows[0].tolist())
    # Vectors stay, popularity moves with the log.
    unit = {name: table.item_unit[: old.index.num_items] for name, table in (("old", old.units), ("new", new.units))}
    torch.testing.assert_close(unit["old"], unit["new"])
    step = after.record(FIRST_NIGHT).steps
    assert step["index"].outcome["recall"] == 1.0
    assert "recall of the item index" in [gate["name"] for gate in step["gates"].outcome["gates"]]


def test_a_bundle_without_an_index_is_continued_without_one(ray_session: None, before: Place, tmp_path: Path) -> None:
    place = before.copy(tmp_path / "place")
    made_from = place.store.open("bundle").manifest.inputs
    parts = {kind: place.store.open(kind, made_from[kind].version) for kind in ("model", "codebooks", "pairs", "vectors")}
    assemble(place.store, **parts)
    pointer = place.store.current("index")
    place.night(FIRST_NIGHT)
    step = place.record(FIRST_NIGHT).steps
    assert list(step["index"].outcome) == ["skipped"]
    assert not Bundle.load(place.store.open("bundle").path).proposes
    assert place.store.current("index") == pointer
    report = (place.store.root / "refresh" / f"night-{FIRST_NIGHT}" / "report.md").read_text()
    assert "has no item index" in report


def test_night_killed_at_every_step_ends_like_one_that_was_not(after: Place, killed_everywhere: dict[str, Place]) -> None:
    assert killed_everywhere["end"].state(FIRST_NIGHT) == after.state(FIRST_NIGHT)


@pytest.mark.parametrize("step", ["bundle", "gates", "publish", "swap"])
def test_night_killed_once_ends_like_one_that_was_not(
    after: Place, killed_everywhere: dict[str, Place], tmp_path: Path, step: str
) -> None:
    place = killed_everywhere[step].copy(tmp_path / "place")
    place.night(FIRST_NIGHT)
    assert place.state(FIRST_NIGHT) == after.state(FIRST_NIGHT)


def test_nothing_in_use_changes_before_publishing(before: Place, killed_everywhere: dict[str, Place]) -> None:
    assert current_versions(killed_everywhere["gates"].store) == current_versions(before.store)


SUICIDE = """
import os, signal, sys
from seminar.artifacts import Store
from seminar.config import Settings
from workflows import refresh

move = Store.set_current

def dying(store, kind, version):
    if kind == "codebooks":
        os.kill(os.getpid(), signal.SIGKILL)
    move(store, kind, version)

Store.set_current = dying
settings = Settings.model_validate_json(sys.stdin.read())
refresh.run(settings, Store(settings.workdir))
"""


def test_sigkill_between_two_pointers_is_finished_by_a_rerun(
    before: Place, after: Place, killed_everywhere: dict[str, Place], tmp_path: Path
) -> None:
    place = killed_everywhere["gates"].copy(tmp_path / "place")
    told = place.settings(FIRST_NIGHT).model_dump_json()
    died = subprocess.run(
        [sys.executable, "-c", SUICIDE], input=told, cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    was, now, end = (current_versions(p.store) for p in (before, place, after))
    assert now == {**was, "pairs": end["pairs"], "vectors": end["vectors"]}
    place.night(FIRST_NIGHT)
    assert place.state(FIRST_NIGHT) == after.state(FIRST_NIGHT)


def test_finished_night_does_nothing_again(after: Place, tmp_path: Path) -> None:
    place = after.copy(tmp_path / "place")
    assert place.night(FIRST_NIGHT).version == after.store.current("bundle")
    assert place.record(FIRST_NIGHT) == after.record(FIRST_NIGHT)


def test_report_tells_the_night(after: Place) -> None:
    report = (after.store.root / "refresh" / f"night-{FIRST_NIGHT}" / "report.md").read_text()
    record = after.record(FIRST_NIGHT)
    for told in (
        "In use.",
        "| items | 4 |",
        "typed",
        *record.base.values(),
        *(record.steps[k].outcome["version"] for k in POINTERS),
    ):
        assert told in report
    for channel in ("query", "text", "image", "attributes"):
        assert report.count(f"| {channel} |") == 3
    assert "Rows of the whole log in quarantine: repeats an event 38." in report
    assert "Contents that could not be encoded: none." in report


def test_report_of_a_served_night_tells_histories_swap_and_verification(after: Place) -> None:
    def told(**outcomes: dict[str, Any]) -> str:
        steps = {name: record.steps[name].model_copy(update={"outcome": outcome}) for name, outcome in outcomes.items()}
        return night_report.render(record.model_copy(update={"steps": {**record.steps, **steps}}))

    record = after.record(FIRST_NIGHT)
    assert not {"## Histories", "## Swap", "## Verification"} & set(told().splitlines())
    passed_over = {live_service.TOO_LONG: 3}
    report = told(
        histories={"users": 2, "behaviours": 1234},
        swap={"replicas": 4},
        verify={"requests": 20, "largest_difference": 2.5e-7, "passed_over": passed_over},
    )
    assert "1,234 behaviours were added to the history store; 2 users are new in it." in report
    assert "4 replicas serve the candidate." in report
    assert "20 requests gave the same scores here and there; largest difference 2.5e-07." in report
    assert "Users that could not be compared: a history of more than 10,000 behaviours 3." in report


def test_drift_is_that_of_the_new_items_alone(after: Place) -> None:
    channels = after.record(FIRST_NIGHT).steps["drift"].outcome["channels"]
    assert [channels[c]["new_vectors"] for c in ("text", "image", "attributes", "query")] == [4, 0, 4, 0]
    assert all(found["changed"] == 0 for found in channels.values())
    assert channels["text"]["new_distortion"] > channels["text"]["old_distortion"] > 0
    refit = after.record(FIRST_NIGHT).steps["codebooks"].outcome["channels"]["text"]["drift"]
    assert refit["new"]["distortion_new"] < refit["new"]["distortion_old"]
    assert refit["new"]["distortion_old"] == pytest.approx(channels["text"]["new_distortion"], rel=1e-5)


def test_log_without_anything_new_changes_nothing(ray_session: None, after: Place, tmp_path: Path) -> None:
    place = after.copy(tmp_path / "place")
    bundle = place.night(FIRST_NIGHT, run_id="night-0")
    assert bundle.version == after.store.current("bundle")
    assert (place.record(0).state, place.record(0).steps) == ("unchanged", {})
    assert current_versions(place.store) == current_versions(after.store)


def test_refused_night_publishes_nothing_and_passes_with_other_limits(
    before: Place,
    after: Place,
    killed_everywhere: dict[str, Place],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = killed_everywhere["bundle"].copy(tmp_path / "place")
    strict = place.settings(FIRST_NIGHT, max_score_change=0.0)
    (tmp_path / "night.toml").write_text(_toml(strict))
    with monkeypatch.context() as patch:
        # With room to spare the codes of histories so short, re-scored, lose nothing.
        patch.setattr(rescored, "SLACK", 0)
        assert workflows_main(["refresh", "--config", str(tmp_path / "night.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "refused: got mean change of probabilities by codes is" in error
    assert f"bundle {before.store.current('bundle')} stays in use" in error
    assert current_versions(place.store) == current_versions(before.store)
    record = place.record(FIRST_NIGHT)
    assert (record.state, len(record.reasons), "gates" in record.steps) == ("refused", 1, False)
    assert record.judged is not None
    assert record.reasons[0] in (place.store.root / "refresh" / f"night-{FIRST_NIGHT}" / "report.md").read_text()
    place.night(FIRST_NIGHT)
    assert place.state(FIRST_NIGHT) == after.state(FIRST_NIGHT)


def test_night_of_bad_data_is_refused(ray_session: None, before: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Titles lost, titles that belong to other items, rows that say nothing new: codes serve all of it as well as ever."""
    place = before.copy(tmp_path / "place")
    log = place.root / "log"
    items, events = pq.read_table(log / "items.parquet"), pq.read_table(log / "events.parquet")
    titles = items["text"].to_pylist()
    bad = pa.array([None] * 10 + titles[:9:-1], items.schema.field("text").type)
    pq.write_table(items.set_column(items.schema.get_field_index("text"), items.schema.field("text"), bad), log / "items.parquet")
    pq.write_table(pa.concat_tables([events, events.slice(0, 40)]), log / "events.parquet")
    # The model is random, so what users took says nothing: here they took what the bundle in use ranks first.
    probes, scorer = Candidate.probes, TwoStageScorer(Bundle.load(place.store.open("bundle").path))
    monkeypatch.setattr(Candidate, "probes", lambda candidate: [_taking_the_best(p, scorer) for p in probes(candidate)])
    with pytest.raises(NightFailed, match="share of rows in quarantine is"):
        place.night(FIRST_NIGHT)
    record = place.record(FIRST_NIGHT)
    assert [reason.split(" is ")[0] for reason in record.reasons] == [
        "fall of a channel's coverage of known rows",
        "share of rows in quarantine",
        "fall of the held-out items' mean reciprocal rank",
    ]
    assert record.judged is not None
    assert record.judged["measured"]["rank_before"] == 1
    report = (place.store.root / "refresh" / f"night-{FIRST_NIGHT}" / "report.md").read_text()
    assert all(f"| {gate['name']} |" in report for gate in record.judged["gates"])
    assert current_versions(place.store) == current_versions(before.store)


def _taking_the_best(probe: Probe, scorer: TwoStageScorer) -> Probe:
    part = probe.within(scorer.bundle)
    assert part is not None
    best = scorer.score(part.history, part.targets).probability_T.argmax()
    return replace(probe, positive=int(np.flatnonzero(probe.targets.item_T == part.targets.item_T[best])[0]))


def _toml(settings: Settings) -> str:
    """The settings as a file; JSON values are TOML values but for tables, and null, which is left out."""

    def written(value: object) -> str:
        if not isinstance(value, dict):
            return json.dumps(value)
        return f"{{{', '.join(f'{json.dumps(key)} = {written(inner)}' for key, inner in value.items() if inner is not None)}}}"

    lines = [f"workdir = {json.dumps(str(settings.workdir))}"]
    for name, section in settings.model_dump(mode="json", exclude={"workdir"}).items():
        lines += [f"[{name}]", *(f"{key} = {written(value)}" for key, value in section.items() if value is not None)]
    return "\n".join(lines)


def test_bundle_made_current_by_others_is_not_overwritten(killed_everywhere: dict[str, Place], tmp_path: Path) -> None:
    place = killed_everywhere["bundle"].copy(tmp_path / "place")
    base = place.store.open("bundle").manifest
    made_from = {kind: place.store.open(kind, base.inputs[kind].version) for kind in ("pairs", "vectors")}
    other = make_bundle(place.store, *made_from.values(), seed=5)
    with pytest.raises(NightFailed, match=f"got {other.version}, expected {base.version}"):
        place.night(FIRST_NIGHT)
    assert place.store.current("bundle") == other.version


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codebooks": CODEBOOKS.model_copy(update={"iterations": 4})}, "codebooks.iterations"),
        ({"refresh": RefreshConfig(run_id="a/b")}, "refresh.run_id"),
        ({"refresh": RefreshConfig(dashboard="http://127.0.0.1:8265")}, "refresh.endpoint"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(after: Place, change: dict[str, Any], said: str) -> None:
    settings = after.settings(FIRST_NIGHT).model_copy(update=change)
    with pytest.raises(ConfigError, match=said):
        refresh.run(settings, after.store)


def test_night_is_named_after_its_run_id_else_the_day_it_sees(before: Place) -> None:
    settings = before.settings(200)
    assert name_of_night(settings) == "night-200"
    assert name_of_night(settings.model_copy(update={"refresh": RefreshConfig()})) == "2020-09-21"


HOLD = """
import sys, time
from pathlib import Path
from seminar.nightly.ledger import night_lock

with night_lock(Path(sys.argv[1]), "night 2020-01-01"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_night_is_told_of_the_first_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "refresh"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(NightFailed) as refused, night_lock(folder, "night 2020-01-02"):
            pass
        assert f"got night 2020-01-01 by process {holder.pid} on {socket.gethostname()} since" in str(refused.value)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10)
    with night_lock(folder, "night 2020-01-02"):
        pass


@dataclass
class LiveWorld:
    """A service of the first night's bundle and the place it serves from; later tests go on where earlier ones stopped."""

    place: Place
    url: str
    port: int

    def night(self, hours: int, **changes: Any) -> Artifact:
        return self.place.night(hours, endpoint=self.url, port=self.port, **changes)

    def versions(self) -> set[str]:
        return {state["bundle_version"] for state in served(self.url)["replicas"]}


@pytest.fixture(scope="module")
def live(ray_session: None, after: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveWorld]:
    place = after.copy(tmp_path_factory.mktemp("live") / "place")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = config_of(place.settings(FIRST_NIGHT, port=port), place.store.current("bundle"))
    application = config["applications"][0]
    application["runtime_env"] = {"working_dir": f"local://{REPOSITORY}"}
    for deployment in application["deployments"]:
        del deployment["autoscaling_config"]
        deployment |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}
    serve.start(proxy_location="HeadOnly", http_options=config["http_options"])
    service = Serve(None)
    service.apply(config)
    service.wait_running(["seminar"])
    yield LiveWorld(place, f"http://127.0.0.1:{port}", port)
    serve.shutdown()


def test_night_swaps_the_running_service_in_place_and_verifies_it(live: LiveWorld) -> None:
    before = served(live.url)
    bundle = live.night(SECOND_NIGHT)
    after = served(live.url)
    assert live.versions() == {bundle.version} != {before["version"]}
    assert [state["pid"] for state in after["replicas"]] == [state["pid"] for state in before["replicas"]]
    steps = live.place.record(SECOND_NIGHT).steps
    assert steps["swap"].outcome == {"replicas": 4}  # two of Ingress, two of Proposer
    assert steps["verify"].outcome["requests"] == 20
    assert steps["verify"].outcome["largest_difference"] <= 1e-5
    new = steps["pairs"].outcome["new"]["behaviours"]
    assert steps["histories"].outcome["behaviours"] == new > 0


def test_scores_that_differ_are_noticed(live: LiveWorld) -> None:
    ledger = Ledger(live.place.store.root, live.place.record(SECOND_NIGHT))
    candidate = Candidate(live.place.settings(SECOND_NIGHT), live.place.store, ledger)
    bundle, service = Bundle.load(candidate.made("bundle").path), LiveService(live.url, None)
    with torch.no_grad():
        bundle.ranker.heads.out.bias += 1e-3
    with pytest.raises(DeployError, match=r"scores for user .* a difference of"):
        service.verify(bundle, candidate.probes())
    with pytest.raises(DeployError, match=r"no request that could be compared \(no probes\)"):
        service.verify(bundle, [])


def test_users_whose_history_is_longer_than_the_service_tells_are_counted(
    live: LiveWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(live.place.store.root, live.place.record(SECOND_NIGHT))
    candidate = Candidate(live.place.settings(SECOND_NIGHT), live.place.store, ledger)
    bundle, service, probes = Bundle.load(candidate.made("bundle").path), LiveService(live.url, None), candidate.probes()
    lengths = np.array([service._history(probe.user_id)["length"] for probe in probes])
    page = int(np.sort(lengths)[5])
    monkeypatch.setattr(live_service, "LONGEST", page)
    told = service.verify(bundle, probes)
    assert told["requests"] == (lengths <= page).sum()
    assert told["passed_over"] == {live_service.TOO_LONG: (lengths > page).sum()}
    with pytest.raises(DeployError, match=r"could be compared \(1 with a history of more than"):
        service.verify(bundle, [probes[int(lengths.argmax())]])


def test_bundle_that_the_service_refuses_is_rolled_back_everywhere(live: LiveWorld) -> None:
    place, in_use = live.place, live.place.store.current("bundle")
    pointers = {kind: (place.store.current(kind), place.store.previous(kind)) for kind in POINTERS}
    killed_at("gates", partial(live.night, THIRD_NIGHT))
    _damage(place.store.open("bundle", place.record(THIRD_NIGHT).steps["bundle"].outcome["version"]))
    killed(partial(live.night, THIRD_NIGHT), Store, "rollback", _dies_after(Store.rollback))
    assert place.record(THIRD_NIGHT).state == "rolling_back"
    for _ in range(2):
        with pytest.raises(NightFailed, match=r"rolled back: got bundle \w+: got ArtifactError: .* expected sha256"):
            live.night(THIRD_NIGHT)
        assert place.record(THIRD_NIGHT).state == "rolled_back"
        assert live.versions() == {in_use}
        assert served(live.url)["refused"] is None
        assert {kind: (place.store.current(kind), place.store.previous(kind)) for kind in POINTERS} == pointers


def _damage(bundle: Artifact) -> None:
    path = bundle.file("tables.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _dies_after(method: Any) -> Any:
    def dying(*args: Any) -> None:
        method(*args)
        raise Killed

    return dying


def test_service_that_answers_from_another_bundle_is_rolled_back(live: LiveWorld) -> None:
    in_use = live.place.store.current("bundle")
    other = live.place.store.previous("bundle")[0]
    killed_at("swap", partial(live.night, FOURTH_NIGHT))
    assert live.versions() == {live.place.store.current("bundle")} != {in_use}
    swap(None, live.url, other)
    with pytest.raises(NightFailed, match=f"rolled back: got verifying: got an answer of bundle {other}"):
        live.night(FOURTH_NIGHT)
    assert live.versions() == {in_use} == {live.place.store.current("bundle")}


def test_unreachable_service_is_told_before_anything_is_published_and_the_night_goes_on_later(live: LiveWorld) -> None:
    in_use = live.place.store.current("bundle")
    with pytest.raises(SeminarError, match="expected a running service"):
        live.place.night(FOURTH_NIGHT, endpoint="http://127.0.0.1:9", run_id="night-1")
    assert live.place.store.current("bundle") == in_use
    bundle = live.night(FOURTH_NIGHT, run_id="night-1")
    assert live.versions() == {bundle.version} != {in_use}


def test_rollback_takes_the_service_and_all_inputs_back(live: LiveWorld, tmp_path: Path) -> None:
    store = live.place.store
    earlier = store.open("bundle", store.previous("bundle")[0])
    (tmp_path / "s.toml").write_text(_toml(live.place.settings(SECOND_NIGHT, endpoint=live.url, port=live.port)))
    assert seminar_main(["versions", "rollback", "bundle", "--config", str(tmp_path / "s.toml")]) == 0
    assert live.versions() == {earlier.version} == {store.current("bundle")}
    assert {kind: store.current(kind) for kind in POINTERS[:-1]} == {
        kind: earlier.manifest.inputs[kind].version for kind in POINTERS[:-1]
    }
    assert earlier.version not in store.previous("bundle")


def versions(store: Store, count: int) -> list[dict[str, str]]:
    """`count` sets of artefacts of every kind that hold nothing."""
    return [
        {kind: store.publish(store.draft(kind, {}, {"number": n}), current=False).version for kind in POINTERS}
        for n in range(count)
    ]


@pytest.mark.parametrize("dies", range(5))
def test_pointers_go_back_however_often_the_way_is_interrupted(store: Store, monkeypatch: pytest.MonkeyPatch, dies: int) -> None:
    oldest, old, new = versions(store, 3)
    new["vectors"] = old["vectors"]
    move_pointers(store, oldest)
    move_pointers(store, old)
    before = current_versions(store)
    history = {kind: store.previous(kind) for kind in POINTERS}
    calls, original = 0, Store.set_current

    def dying(self: Store, kind: str, version: str) -> None:
        nonlocal calls
        calls += 1
        if calls == dies + 1:
            raise Killed
        original(self, kind, version)

    with suppress(Killed), monkeypatch.context() as patch:
        patch.setattr(Store, "set_current", dying)
        move_pointers(store, new)
    for _ in range(2):
        move_back(store, new, before)
        assert current_versions(store) == old
        assert {kind: store.previous(kind) for kind in POINTERS} == history


def test_restore_does_not_need_what_was_deleted(store: Store) -> None:
    old, new = versions(store, 2)
    inputs = {kind: store.open(kind, old[kind]) for kind in ("pairs", "vectors")}
    bundle = store.publish(store.draft("bundle", inputs, {}), current=False)
    move_pointers(store, new)
    shutil.rmtree(store.open("vectors", old["vectors"]).path)
    restore(store, bundle)
    assert current_versions(store) == {**new, "pairs": old["pairs"], "bundle": bundle.version}


def retrieved(relevance: list[list[float]], length: int) -> Retrieved:
    none, relevance_TK = np.empty(0, np.int64), np.array(relevance, np.float32)
    kept = np.zeros(relevance_TK.shape, np.int64)
    cross, choice = np.zeros((len(relevance), 1), np.float32), Choice("exact", 1.0, "set")
    return Retrieved(none, none, none, none, kept, relevance_TK, cross, np.zeros((0, 1), np.float32), length, choice)


def test_found_share_counts_equals_and_short_histories() -> None:
    # By position, not by relevance: that is how the K come.
    exact = retrieved([[3, 5, 4], [2, 9, 2]], 10)
    assert found_share(exact, exact) == 1
    assert found_share(exact, retrieved([[5, 1, 3], [2, 2, 9]], 10)) == pytest.approx(5 / 6)
    short = retrieved([[5, 4, -np.inf]], 2)
    assert found_share(short, retrieved([[5, 4, -np.inf]], 2)) == 1
    assert found_share(short, retrieved([[5, 3, -np.inf]], 2)) == 0.5


def test_gates_hold_their_limits_and_no_number_never_passes() -> None:
    config = RefreshConfig(min_recall=0.9, max_recall_drop=0.05, max_score_change=0.01)
    good = Measured(10, 5, recall=0.9, recall_before=0.95, score_change=0.01, not_finite=0)
    assert all(gate.passed for gate in judge(good, config, 50))
    bad: dict[str, Any] = {"recall": 0.89, "recall_before": 0.96, "score_change": 0.011, "not_finite": 1}
    bad |= {"coverage_drop": 0.03, "quarantined": 0.06, "rank": 0.94}
    for number, (name, value) in enumerate(bad.items()):
        gates = judge(replace(good, **{name: value}), config, 50)
        assert number in [place for place, gate in enumerate(gates) if not gate.passed]
    for bound in ("at least", "at most"):
        assert not Gate("x", float("nan"), bound, 0.5).passed


def test_lost_content_and_rejected_rows_are_measured(before: Place) -> None:
    in_use = Bundle.load(before.store.open("bundle").path)
    present = in_use.units.item_present.clone()
    texts = present[:, 0].nonzero()[:, 0]
    present[texts[: len(texts) // 2], 0] = False
    candidate = replace(in_use, units=replace(in_use.units, item_present=present))
    assert coverage_drop(candidate, in_use) == pytest.approx((len(texts) // 2) / len(present))
    assert coverage_drop(in_use, candidate) == 0
    no_queries = torch.zeros_like(in_use.units.query_present)
    assert coverage_drop(replace(in_use, units=replace(in_use.units, query_present=no_queries)), in_use) == 1
    metrics = {"quarantined": {"time not plausible": 3, "empty id": 2}, "behaviours": 90, "exposures": 5}
    assert quarantined_share(metrics) == pytest.approx(0.05)


def test_probe_within_an_older_bundle_is_what_its_service_would_see(before: Place) -> None:
    bundle = Bundle.load(before.store.open("bundle").path)
    known, queries = len(bundle.item_ids), len(bundle.query_ids)
    rows = np.array([0, known, 1])
    history = ScoringHistory(rows, np.array([queries, 0, 0]), np.arange(3))
    probe = Probe("u", history, Targets(rows + 1, np.array([0, 0, queries]), 0, 5), 2)
    part = probe.within(bundle)
    assert part is not None
    assert (part.history.item_L.tolist(), part.history.query_L.tolist()) == ([0, 1], [-1, 0])
    assert (part.targets.item_T.tolist(), part.targets.query_T.tolist(), part.positive) == ([1, 2], [0, -1], 1)
    newest = replace(probe, positive=1).within(bundle)
    assert newest is not None
    assert newest.positive == -1
    unknown = ScoringHistory(rows + known, rows, rows)
    assert Probe("u", unknown, probe.targets, 0).within(bundle) is None


def test_reciprocal_rank_shares_places_between_equals_and_puts_no_number_last() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.1], np.float32)
    assert [reciprocal_rank(scores, place) for place in range(4)] == pytest.approx(
        [(1 / 2 + 1 / 3) / 2, 1, (1 / 2 + 1 / 3) / 2, 1 / 4]
    )
    scores[3] = np.nan
    assert reciprocal_rank(scores, 1) == 0


def test_strain_equals_a_count_by_hand() -> None:
    draw = np.random.default_rng(0)
    unit = draw.standard_normal((40, 2, 8)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    config = CodebookConfig(num_subquantizers=2, num_centroids=4, iterations=2)
    samples = [unit[:0, 0], unit[:30, 0], unit[:0, 0], unit[:30, 1]]
    books, _ = fit(samples, config, Stamp("v", "f"))
    present = draw.random((40, 2)) < 0.8
    had = draw.random((30, 2)) < 0.8
    codes = np.stack([books.encode(channel, unit[:30, column]) for column, channel in enumerate((1, 3))], 1)
    codes[4, 0, 1] ^= 1
    had[4, 0] = present[4, 0] = True
    text, attributes = strain(books, (1, 3), unit, present, codes, had)
    error = ((books.decode(1, books.encode(1, unit[:, 0])) - unit[:, 0]) ** 2).sum(1)
    assert text.summary() == pytest.approx(
        {
            "old_vectors": present[:30, 0].sum(),
            "old_distortion": error[:30][present[:30, 0]].mean(),
            "new_vectors": present[30:, 0].sum(),
            "new_distortion": error[30:][present[30:, 0]].mean(),
            "changed": 1 / (2 * (present[:30, 0] & had[:, 0]).sum()),
        },
        rel=1e-5,
    )
    assert attributes.changed == 0
    empty = strain(books, (0,), unit[:, :1], present[:, :1], codes[:, :1], had[:, :1])[0]
    assert (empty.old, empty.new, empty.changed, empty.old_error) == (present[:30, 0].sum(), present[30:, 0].sum(), 0, 0)
    halves = [
        strain(books, (1,), unit[:20, :1], present[:20, :1], codes[:20, :1], had[:20, :1])[0],
        strain(books, (1,), unit[20:, :1], present[20:, :1], codes[20:, :1], had[20:, :1])[0],
    ]
    assert vars(halves[0] + halves[1]) == pytest.approx(vars(text))
