"""Figures, their intervals and what is pooled; the three forms of a report; the job that makes it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from seminar.artifacts import Artifact, Store
from seminar.channels import VectorTables
from seminar.config import CodebookConfig, EvaluateConfig, RayConfig, Settings
from seminar.data.prepare import lineage
from seminar.errors import ArtifactError, DataError, VersionMismatch
from seminar.evaluate.evaluation import FULL, IMPRESSIONS, RANKED, SAMPLED, Rows
from seminar.evaluate.metrics import auc, gauc, log_loss, ranking_metrics
from seminar.evaluate.plots import smooth
from seminar.evaluate.protocol import FLOORS, IN_HISTORY, POPULARITY
from seminar.evaluate.report import Facts, write_report
from seminar.evaluate.summary import ALL, LENGTH, summarise
from seminar.ranker import Ranker
from seminar.retrieval.recall import Recall
from tests.test_train_jobs import SMALL, tiny_vectors
from workflows import evaluate, fit_codebooks

USERS = 120
LOW, HIGH = {POPULARITY: (20, 60), IN_HISTORY: (10, 40), "model": (0, 10)}, 99


def made_rows(seed: int = 0, origins: tuple[str, ...] = ("none", "typed"), lift: int = 0) -> Rows:
    """Users with two held-out pairs and six impressions each; the model ranks above the floors, `lift` places lower."""
    rng = np.random.default_rng(seed)
    facts = np.random.default_rng(99)
    ranked, shown = [], []
    for user in range(USERS):
        for position in range(2):
            origin = origins[(user + position) % len(origins)]
            length, unseen, repeat = int(facts.integers(1, 900)), bool(facts.random() < 0.2), bool(facts.random() < 0.4)
            for scorer, (low, high) in LOW.items():
                above = int(rng.integers(low, high)) + (lift if scorer == "model" else 0)
                common = (f"u{user:03d}", position, SAMPLED, scorer, origin, "ctr", length, unseen, repeat)
                ranked.append((*common, above, int(rng.integers(0, 2)), HIGH))
        for i in range(6):
            label = int(i < 2)
            shown += [(f"u{user:03d}", s, origins[0], -1, label, float(rng.normal() + label)) for s in LOW]
    return Rows(_table(ranked, RANKED), _table(shown, IMPRESSIONS), {"users without a held-out request": 3})


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def summary(*runs: Rows, **changes: Any) -> dict[tuple[str, ...], dict[str, Any]]:
    lines = summarise(runs or [made_rows()], np.random.default_rng(1), **{"replicates": 100, **changes})
    return {tuple(line[k] for k in ("protocol", "query_origin", "slice", "bin", "scorer")): line for line in lines}


def value(line: dict[str, Any], metric: str) -> float:
    return line["metrics"][metric]["value"]


def test_figures_are_means_over_pairs_inside_their_interval() -> None:
    rows, lines = made_rows(), summary()
    table = rows.ranked.filter(pa.compute.equal(rows.ranked["scorer"], "model"))
    expected = ranking_metrics(*(table[name].to_numpy() for name in ("above", "tied", "others")))
    line = lines[SAMPLED, "none+typed", ALL, ALL, "model"]
    assert (line["users"], line["rows"], line["runs"]) == (USERS, 2 * USERS, 1)
    for name, values in expected.items():
        figure = line["metrics"][name]
        assert figure["value"] == pytest.approx(values.mean())
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_impression_figures_agree_with_the_metrics_they_are_made_of() -> None:
    rows, lines = made_rows(), summary()
    table = rows.impressions.filter(pa.compute.equal(rows.impressions["scorer"], "model"))
    score, label = table["score"].to_numpy(), table["label"].to_numpy()
    group = np.unique(table["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    line = lines["impressions", "none", ALL, ALL, "model"]
    assert value(line, "AUC") == pytest.approx(auc(score, label))
    assert value(line, "gAUC") == pytest.approx(gauc(score, label, group)[0])
    assert value(line, "log-loss") == pytest.approx(log_loss(score, label).mean())
    assert line["metrics"]["AUC"]["low"] < value(line, "AUC") < line["metrics"]["AUC"]["high"]
    assert "log-loss" not in lines["impressions", "none", ALL, ALL, POPULARITY]["metrics"], "a floor gives no probability"


def test_impressions_are_never_compared_across_queries() -> None:
    # Inside each query the scorer is at chance; between the two it looks perfect.
    rows = [("u", "model", "typed", query, label, 10.0 * query) for query in (0, 1) for label in (0, 1) for _ in range(3)]
    line = summary(Rows(made_rows().ranked, _table(rows, IMPRESSIONS), {}))["impressions", "typed", ALL, ALL, "model"]
    assert value(line, "gAUC") == 0.5
    assert line["notes"]["groups"] == 2


def test_query_origins_are_never_pooled() -> None:
    lines = summary(made_rows(origins=("none", "typed", "tag")))
    assert {key[1] for key in lines if key[0] == SAMPLED} == {"none", "typed", "tag"}
    with_one = {key[1] for key in summary() if key[0] == SAMPLED}
    assert with_one == {"none", "typed", "none+typed"}, "pairs without a query belong to the setting of the one origin"


def test_slices_share_out_all_pairs() -> None:
    lines = summary()
    for name in (LENGTH, "repeat", "unseen"):
        parts = [line for key, line in lines.items() if key[2] == name and key[4] == "model"]
        assert sum(line["rows"] for line in parts) == 2 * USERS
        whole = sum(line["rows"] * value(line, "NDCG@10") for line in parts) / (2 * USERS)
        assert whole == pytest.approx(value(lines[SAMPLED, "none+typed", ALL, ALL, "model"], "NDCG@10"))
    bins = [line["rows"] for key, line in lines.items() if key[2] == LENGTH and key[4] == "model"]
    assert len(bins) == 4
    assert max(bins) - min(bins) <= 4


def test_history_lengths_that_are_all_equal_make_one_bin() -> None:
    rows = made_rows()
    equal = rows.ranked.set_column(6, RANKED.field("history_length"), pa.array(np.full(len(rows.ranked), 7)))
    bins = {key[3] for key in summary(Rows(equal, rows.impressions, {})) if key[2] == LENGTH}
    assert bins == {"7 to 7"}


def test_gains_are_paired_by_user() -> None:
    rows = made_rows()
    floor = rows.ranked.filter(pa.compute.equal(rows.ranked["scorer"], POPULARITY))
    model = floor.set_column(9, RANKED.field("above"), pa.compute.subtract(floor["above"], 1))
    model = model.set_column(3, RANKED.field("scorer"), pa.array(["model"] * len(model)))
    lines = summary(Rows(pa.concat_tables([floor, model]), rows.impressions.slice(0, 0), {}))
    line = lines[SAMPLED, "none+typed", ALL, ALL, "model"]
    gain, own = line["gains"][POPULARITY]["AUC"], line["metrics"]["AUC"]
    assert gain["value"] == pytest.approx(1 / HIGH)
    assert gain["high"] - gain["low"] < 1e-9, "every user gains one place: no doubt about the difference"
    assert own["high"] - own["low"] > 0.01
    assert "gains" not in lines[SAMPLED, "none+typed", ALL, ALL, POPULARITY]


def test_several_seeds_are_averaged_and_widen_the_interval() -> None:
    runs = [made_rows(lift=lift) for lift in (0, 15, 30)]
    singles = [value(summary(run)[SAMPLED, "none+typed", ALL, ALL, "model"], "AUC") for run in runs]
    line = summary(*runs)[SAMPLED, "none+typed", ALL, ALL, "model"]
    assert line["runs"] == 3
    assert value(line, "AUC") == pytest.approx(np.mean(singles))
    assert line["metrics"]["AUC"]["low"] < np.mean(singles[1:]) < value(line, "AUC") < line["metrics"]["AUC"]["high"]
    with pytest.raises(DataError, match="different lines"):
        summary(runs[0], made_rows(origins=("none",)))


def test_one_model_is_compared_with_another_as_reference() -> None:
    scratch = made_rows(lift=5)
    both = made_rows().renamed({"model": "pretrained"}, keep=FLOORS).joined(scratch.renamed({"model": "from scratch"}))
    lines = summary(both, references=("from scratch",))
    gain = lines[SAMPLED, "none+typed", ALL, ALL, "pretrained"]["gains"]["from scratch"]["AUC"]
    assert gain["value"] == pytest.approx(5 / HIGH)
    assert set(both.ranked["scorer"].to_pylist()) == {"pretrained", "from scratch", *FLOORS}


def test_nothing_held_out_is_one_sentence() -> None:
    with pytest.raises(DataError, match="no held-out pair"):
        summary(Rows(RANKED.empty_table(), IMPRESSIONS.empty_table(), {}))


def test_smoothing_keeps_a_straight_line_and_its_length() -> None:
    line = np.arange(31.0)
    assert smooth(line, 8) == pytest.approx(line)
    assert smooth(np.array([0.0, 3.0, 0.0]), 3) == pytest.approx([0, 1, 0])


def curve(steps: int = 40) -> pa.Table:
    step = np.arange(1, steps + 1)
    return pa.table({"step": step, "loss": 1 / step, "ctr": 2 / step, "pairs_per_s": 100.0 + step, "gradient_norm": 0 * step})


@pytest.fixture
def report(tmp_path: Path) -> Path:
    facts = Facts(EvaluateConfig(), {"model": "abc123", "pairs": "def456"}, {"users": 1234567}, {"pairs without a negative": 4})
    lines = summarise([made_rows()], np.random.default_rng(1), replicates=50)
    write_report(tmp_path, facts, lines, {"fine-tuning": curve()}, [Recall(10, 0.8, 0.99), Recall(50, 0.9, 1.0)])
    return tmp_path


def test_every_figure_in_the_json_names_protocol_origin_size_and_interval(report: Path) -> None:
    document = json.loads((report / "report.json").read_text())
    assert document["versions"] == {"model": "abc123", "pairs": "def456"}
    assert document["query_origins"] == ["none", "none+typed", "typed"]
    assert document["recall_of_codes"][0] == {"k": 10, "codes_alone": 0.8, "rescored": 0.99}
    for line in document["results"]:
        assert line["protocol"] in document["protocols"]
        assert {"query_origin", "slice", "bin", "scorer", "users", "rows", "runs"} <= line.keys()
        assert all(figure.keys() == {"value", "low", "high"} for figure in line["metrics"].values())


def test_the_page_states_the_protocol_before_its_table_and_floors_beside_the_model(report: Path) -> None:
    page = (report / "report.md").read_text()
    sentence, table = page.index("ranked among 99 items of its own category"), page.index("| scorer |")
    assert sentence < table
    rows = [row for row in page[table:].splitlines()[2:5]]
    assert [row.split("|")[1].strip() for row in rows] == ["**model**", IN_HISTORY, POPULARITY]
    for said in (
        "Query origin none+typed: 120 users",
        "1,234,567 users",
        "`abc123`",
        "4 pairs without a negative",
        "paired by user",
    ):
        assert said in page
    for name in report.glob("*.png"):
        assert f"({name.name})" in page


def test_plots_are_drawn_and_not_blank(report: Path) -> None:
    names = sorted(path.name for path in report.glob("*.png"))
    assert names == ["by_history_length.png", "curve_fine-tuning.png", "model_and_floors.png", "recall_of_codes.png"]
    for name in names:
        image = np.asarray(Image.open(report / name).convert("L"))
        assert min(image.shape) > 300
        assert (image < 128).mean() > 0.003


def test_a_report_without_codes_or_curves_leaves_those_out(tmp_path: Path) -> None:
    lines = summarise([made_rows()], np.random.default_rng(1), replicates=50)
    plots = write_report(tmp_path, Facts(EvaluateConfig(), {}, {}, {}), lines, {})
    assert plots == ["model_and_floors.png", "by_history_length.png"]
    assert "codes" not in (tmp_path / "report.md").read_text()


def publish_vectors(store: Store, pairs: Artifact) -> Artifact:
    """Small random vectors, with the lineage that a real `vectors` artefact records."""
    tables = vars(VectorTables.load(tiny_vectors(store, pairs)))
    draft = store.draft("vectors", {"pairs": pairs}, {"lineage": lineage(pairs), "text_encoder": "none"})
    save_numpy(tables, draft.path / "vectors.safetensors")
    return store.publish(draft)


def publish_model(store: Store, pairs: Artifact, vectors: Artifact) -> Artifact:
    """An untrained ranker as a `model` artefact."""
    ranker = Ranker.build(SMALL, VectorTables.load(vectors), torch.Generator().manual_seed(0))
    draft = store.draft("model", {"pairs": pairs, "vectors": vectors}, {"model": SMALL.model_dump(mode="json")})
    save_file({name: tensor.contiguous() for name, tensor in ranker.state_dict().items()}, draft.path / "model.safetensors")
    pq.write_table(curve(), draft.path / "curve.parquet")
    return store.publish(draft)


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory, tiny_store: Store, tiny_pairs: Artifact) -> Store:
    """The tiny pairs, vectors and an untrained model, in a store that no other test file changes."""
    root = tmp_path_factory.mktemp("evaluate")
    shutil.copytree(tiny_store.root / "pairs", root / "pairs")
    store = Store(root)
    store.set_current("pairs", tiny_pairs.version)
    publish_model(store, tiny_pairs, publish_vectors(store, tiny_pairs))
    return store


@pytest.fixture
def settings(own_store: Store) -> Settings:
    return Settings(
        workdir=own_store.root,
        model=SMALL,
        codebooks=CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=2, num_shards=1),
        evaluate=EvaluateConfig(num_negatives=5, full_ranking_users=10, num_workers=2),
        ray=RayConfig(address="local"),
    )


def test_the_job_scores_every_user_once_and_a_rerun_returns_at_once(
    ray_session: None, own_store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "USERS_A_PART", 4)
    codebooks = fit_codebooks.run(settings, own_store)
    artifact = evaluate.run(settings, own_store)
    rows = Rows.read(artifact.path)
    sampled = rows.ranked.filter(pa.compute.equal(rows.ranked["protocol"], SAMPLED)).to_pylist()
    per_user: dict[str, set[str]] = {}
    for row in sampled:
        per_user.setdefault(row["user_id"], set()).add(row["scorer"])
    assert all(scorers == {"model", *FLOORS} for scorers in per_user.values())
    assert len(sampled) == 3 * len(per_user)
    assert FULL in rows.ranked["protocol"].to_pylist()
    assert {"report.json", "report.md", "curve_fine-tuning.png", "rows.ranked.parquet"} <= set(artifact.manifest.files)
    assert artifact.manifest.metrics["query_origin"] == "none+typed"
    assert "| **model** |" in capsys.readouterr().out
    document = json.loads(artifact.file("report.json").read_text())
    assert document["versions"]["codebooks"] == codebooks.version
    assert [point["k"] for point in document["recall_of_codes"]] == list(evaluate.RECALL_KS)
    assert all(0 <= point["codes_alone"] <= point["rescored"] + 1e-9 <= 1 + 2e-9 for point in document["recall_of_codes"])
    assert document["recall_of_codes"][-1]["rescored"] == pytest.approx(1), "longer than any tiny history"

    monkeypatch.setattr(evaluate, "_score_all", lambda *_: pytest.fail("nothing is left to score"))
    fewer = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"num_workers": 1})})
    assert evaluate.run(fewer, own_store).version == artifact.version


def test_a_rerun_scores_only_the_missing_parts(
    ray_session: None, own_store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"seed": 11})})
    with monkeypatch.context() as stopped:
        stopped.setattr(evaluate, "summarise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(changed, own_store)
    folder = next((own_store.root / "report").glob(".draft-*")) / "_rows"
    done = sorted(folder.glob("*.json"))
    os.remove(done[0])
    scored: list[dict[str, Any]] = []
    whole_map = evaluate._map
    monkeypatch.setattr(evaluate, "_map", lambda job, parts, *rest: scored.extend(parts) or whole_map(job, parts, *rest))
    artifact = evaluate.run(changed, own_store)
    assert [f"{part['shard']}-{part['part']:05d}.json" for part in scored] == [done[0].name]
    assert len(done) > 2
    assert Rows.read(artifact.path).ranked.num_rows


def test_vectors_of_other_pairs_are_refused(ray_session: None, store: Store, tiny_pairs: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="model"):
        evaluate.run(Settings(workdir=store.root), store)
    vectors = publish_vectors(store, tiny_pairs)
    publish_model(store, tiny_pairs, vectors)
    (tmp_path / "other").mkdir()
    store.publish(store.draft("pairs", {}, {"other": True}))
    with pytest.raises(VersionMismatch, match="run embed again"):
        evaluate.run(Settings(workdir=store.root), store)
