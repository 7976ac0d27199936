"""A comparison: the same search for every model, one run found or resumed, one report over tasks of a cluster."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from seminar.artifacts import Artifact, Store
from seminar.channels import VectorTables, unit_tables
from seminar.compare.cost import request_batches, score_times, search_bytes, served
from seminar.compare.plan import draws, model_plans, trial_plans, variant_plans
from seminar.compare.run import PSU, RUN, pretrained, psu_version, require_lists, scored, trained
from seminar.config import CompareConfig, DataConfig, ModelConfig, RayConfig, Settings, load_settings, merged, settings_of
from seminar.errors import ConfigError, DataError, VersionMismatch
from seminar.evaluate.evaluation import Rows
from seminar.evaluate.negatives import ItemPool
from seminar.heads import CatalogueStats
from seminar.models import NAMES, UNITS, load_model
from seminar.ranker import load_ranker, serving_ranker
from seminar.sequences import read_histories
from seminar.train.build import fresh_model, shard_paths
from tests.bundles import make_vectors

CPU = torch.device("cpu")
SMALL = {
    "model": {"dim": 16, "num_heads": 2, "id_dim": 8, "num_token_rows": 64, "top_k": 4, "recent": 4, "hidden": [16]},
    "embed": {"image_encoder": "none"},
    "pretrain": {"steps": 4, "lanes": 2, "chunks_per_lane": 2, "window": 8, "num_chunks": 2, "checkpoint_every": 2},
    "finetune": {"steps": 4, "lanes": 2, "requests_per_lane": 4, "checkpoint_every": 2, "warmup_steps": 0},
    "evaluate": {"num_negatives": 5, "full_ranking_users": 30},
    "compare": {"cost_lengths": [8]},
}


def small(**compare: object) -> Settings:
    return settings_of(merged(SMALL, {"compare": compare}))


@pytest.fixture(scope="module")
def inputs(tiny_store: Store, tiny_pairs: Artifact) -> dict[str, Artifact]:
    return {"pairs": tiny_pairs, "vectors": make_vectors(tiny_store, tiny_pairs)}


def test_every_model_is_tuned_by_the_same_draws() -> None:
    settings = small(trials=4, trial_steps=2)
    trials = draws(settings, np.random.default_rng(0))
    assert trials == draws(settings, np.random.default_rng(0))
    assert trials[0] == {}, "the settings as given are a trial"
    assert len({json.dumps(t) for t in trials}) == 4
    by_kind = [trial_plans(settings, kind, trials) for kind in settings.compare.models]
    for plans in zip(*by_kind, strict=True):
        changed = [plan.settings.finetune.model_copy(update={"pretrained": True}) for plan in plans]
        assert all(one == changed[0] for one in changed)
        assert {plan.settings.evaluate.split for plan in plans} == {"validation"}
        assert {plan.settings.finetune.steps for plan in plans} == {2}


def test_a_search_smaller_than_the_trials_ends() -> None:
    settings = small(trials=9, search={"model.dropout": [0.0, 0.1]})
    assert len(draws(settings, np.random.default_rng(0))) == 3


def test_models_differ_by_kind_and_seed_alone() -> None:
    settings = small(seeds=[3, 5])
    kinds = [plan for kind in settings.compare.models for plan in model_plans(settings, kind, {"finetune.learning_rate": 0.01})]
    assert [plan.name for plan in kinds] == [NAMES[kind] for kind in settings.compare.models for _ in range(2)]
    same = {
        plan.settings.model_copy(
            update={
                "model": plan.settings.model.model_copy(update={"kind": "seminar"}),
                "finetune": plan.settings.finetune.model_copy(update={"seed": 0, "pretrained": True}),
                "pretrain": plan.settings.pretrain.model_copy(update={"seed": 0}),
                "evaluate": plan.settings.evaluate.model_copy(update={"full_ranking_users": 0}),
            }
        ).model_dump_json()
        for plan in kinds
    }
    assert len(same) == 1
    starts = {plan.settings.model.kind: plan.settings.finetune.pretrained for plan in kinds}
    assert starts == {**dict.fromkeys(NAMES, False), "seminar": True, "muse": "content"}


def test_variants_start_from_what_was_chosen_and_name_their_model() -> None:
    settings = small(
        variants={"no ids": {"model": {"channels": ["text"]}}, "plain": {"model": {"kind": "twin", "cross_features": False}}},
        lengths=[4],
    )
    chosen = {"seminar": {"finetune.learning_rate": 0.5}, "twin": {"finetune.learning_rate": 0.25}}
    plans = {plan.name: plan.settings for plan in variant_plans(settings, chosen)}
    assert list(plans) == ["SEMINAR / no ids", "TWIN / plain", "SEMINAR L=4"]
    assert plans["SEMINAR / no ids"].finetune.learning_rate == 0.5
    assert plans["TWIN / plain"].finetune.learning_rate == 0.25
    assert not plans["TWIN / plain"].finetune.pretrained
    assert plans["SEMINAR L=4"].finetune.max_history == plans["SEMINAR L=4"].evaluate.max_history == 4


def test_as_published_a_model_sees_what_its_paper_feeds_it() -> None:
    settings = small(published=True)
    plans = {plan.name: plan.settings.model for plan in variant_plans(settings, {})}
    assert set(plans) == {f"{NAMES[kind]} / as published" for kind in settings.compare.models}
    assert not any(model.cross_features or model.trend_features for model in plans.values())
    assert {name for name, model in plans.items() if "text" in model.channels} == {
        f"{name} / as published" for name in ("SEMINAR", "QIN", "MUSE")
    }
    assert (plans["SEMINAR / as published"].taste, plans["SEMINAR / as published"].simtier) == (0, False)


def test_a_mistyped_variant_is_refused_by_name() -> None:
    settings = small(variants={"typo": {"model": {"chanels": ["text"]}}})
    with pytest.raises(ConfigError, match=r"run 'SEMINAR / typo'.*chanels.*did you mean 'channels'"):
        variant_plans(settings, {})
    with pytest.raises(ConfigError, match="must be among seeds"):
        small(variant_seeds=[9])


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"seeds": [0, 0]}, "seeds .*each once"),
        ({"models": []}, "models .*at least one"),
        ({"search": {"model.dropout": [0.1, 0.1]}}, "model.dropout .*each once"),
        ({"variants": {"other data": {"data.query_setting": "none"}}}, "variant 'other data' changes 'data'"),
        ({"variants": {"easier": {"evaluate": {"num_negatives": 3}}}}, "variant 'easier' changes 'evaluate'"),
        ({"search": {"embed.batch_size": [1, 2]}}, "search changes 'embed'"),
    ],
)
def test_a_grid_that_could_not_be_compared_is_refused_before_it_trains(compare: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**compare)


def test_data_without_anything_to_rank_is_refused_before_it_trains(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_lists(inputs["pairs"], small())
    bare = ItemPool(np.full(200, -1, np.int32), np.ones(200, np.int64))
    monkeypatch.setattr(ItemPool, "of", lambda table: bare)
    with pytest.raises(DataError, match=r"validation split.*same_category.*evaluate.negatives = 'uniform'"):
        require_lists(inputs["pairs"], small())
    require_lists(inputs["pairs"], settings_of(merged(SMALL, {"evaluate.negatives": "uniform"})))


@pytest.mark.parametrize("kind", NAMES)
def test_any_kind_is_trained_scored_and_loaded(kind: str, tiny_store: Store, inputs: dict[str, Artifact]) -> None:
    settings = settings_of(merged(SMALL, {"model.kind": kind, "finetune.pretrained": False}))
    run = trained(tiny_store, inputs, settings, CPU, lambda row: None)
    assert run.manifest.metrics["steps"] == 4
    rows = Rows.read(scored(tiny_store, inputs, run, settings.evaluate, CPU).path)
    assert set(rows.ranked["scorer"].to_pylist()) == {"model", "popularity", "in-history, then popularity"}
    assert set(rows.ranked["protocol"].to_pylist()) == {"sampled", "full"}
    model = load_model(run, inputs["vectors"])
    assert model.config.kind == kind
    if kind != "seminar":
        with pytest.raises(VersionMismatch, match="expected kind 'seminar'"):
            load_ranker(run, inputs["vectors"])
    histories = read_histories(pq.read_table(shard_paths(inputs["pairs"])[0]))
    times = score_times(run, inputs["vectors"], histories, [3, 90])
    assert all(time > 0 for time in times.values())
    assert search_bytes(settings.model, 90) > 0


def test_what_is_timed_is_what_is_scored(tiny_store: Store, inputs: dict[str, Artifact]) -> None:
    settings = settings_of(merged(SMALL, {"finetune.pretrained": False}))
    ranker = load_ranker(trained(tiny_store, inputs, settings, CPU, lambda row: None), inputs["vectors"])
    histories = read_histories(pq.read_table(shard_paths(inputs["pairs"])[0]))
    stats = CatalogueStats.of(VectorTables.load(inputs["vectors"]))
    whole = serving_ranker(ranker.config, unit_tables(ranker.channels), stats, ranker.state_dict())
    for length in (1, 40, 500):
        batch = request_batches(histories, length)[0]
        with torch.inference_mode():
            torch.testing.assert_close(served(whole, batch)(), ranker(batch).logit_BTS, rtol=0, atol=1e-4)


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, tiny_store: Store, inputs: dict[str, Artifact]) -> None:
    settings = settings_of(merged(SMALL, {"finetune.seed": 1}))

    class Cut(Exception):
        pass

    def cut_at_3(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise Cut

    def quietly(row: dict[str, float]) -> None:
        seen.append(row["step"])

    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    seen: list[float] = []
    weights = []
    for store in (whole, broken):
        pretrained(store, inputs, settings, CPU, lambda row: None)
        if store is broken:
            with pytest.raises(Cut):
                trained(store, inputs, settings, CPU, cut_at_3)
            seen.clear()
        weights.append(trained(store, inputs, settings, CPU, quietly).file("model.safetensors").read_bytes())
    assert seen == [3, 4], "it went on from the checkpoint of step 2"
    assert weights[0] == weights[1]


def test_a_psu_of_a_comparison_is_that_of_pretrain_and_depends_on_its_channels_alone(
    tiny_store: Store, inputs: dict[str, Artifact]
) -> None:
    settings = small()
    version = psu_version(tiny_store, inputs, settings)
    for name, same in {"model.top_k": True, "finetune.steps": True, "model.channels": False, "pretrain.steps": False}.items():
        value = {"model.top_k": 2, "finetune.steps": 9, "model.channels": ["text"], "pretrain.steps": 9}[name]
        changed = settings_of(merged(SMALL, {name: value}))
        assert (psu_version(tiny_store, inputs, changed) == version) is same, name
    psu = pretrained(tiny_store, inputs, settings, CPU, lambda row: None)
    assert (psu.manifest.kind, psu.version) == (PSU, version)


@pytest.mark.parametrize("kind", ["seminar", "muse"])
def test_content_alone_is_what_a_model_takes_of_a_psu(kind: str, tiny_store: Store, inputs: dict[str, Artifact]) -> None:
    settings = settings_of(merged(SMALL, {"model.kind": kind, "finetune.pretrained": "content"}))
    vectors = inputs["vectors"].path
    path = pretrained(tiny_store, inputs, settings, CPU, lambda row: None).file("psu.safetensors")
    of_psu = {name: value for name, value in load_file(path).items() if name.startswith(("channels.", "gate."))}
    fresh, content = (fresh_model(settings.model, settings.finetune, vectors, psu).state_dict() for psu in (None, path))
    taken = {name for name, value in content.items() if not torch.equal(value, fresh[name])}
    # This world has no image, so its projection has no row.
    assert taken == {"channels.project_query", "channels.project_text"}
    assert all(torch.equal(content[name], of_psu[name]) for name in taken)
    run = trained(tiny_store, inputs, settings, CPU, lambda row: None)
    assert run.manifest.inputs[PSU].version == psu_version(tiny_store, inputs, settings)


def test_channels_that_are_not_used_change_no_score(tiny_store: Store, inputs: dict[str, Artifact]) -> None:
    settings = settings_of(merged(SMALL, {"model.channels": ["text"], "finetune.pretrained": False}))
    model = load_model(trained(tiny_store, inputs, settings, CPU, lambda row: None), inputs["vectors"])
    rows = torch.arange(20)
    unit, present = model.channels.unit_items(rows)
    assert present[:, 0].any()
    assert not present[:, 1:].any()
    assert not unit[:, 1:].any()
    assert not model.channels.unit_queries(torch.tensor([0, 1, -1]))[1].any()


def test_one_command_compares_on_any_canonical_folder(
    ray_session: None, tmp_path: Path, tiny_dataset: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    from workflows import compare

    values = {
        "workdir": str(tmp_path),
        "data": tiny_dataset.model_dump(),
        "prepare": {"num_shards": 4, "chunk_length": 16},
        "ray": RayConfig(address="local").model_dump(),
        "compare": {
            "models": ["seminar", "sim_hard"],
            "seeds": [0, 1],
            "trials": 2,
            "variants": {"no queries": {"model.channels": ["text", "image", "attributes"]}},
            "lengths": [2],
        },
    }
    settings = settings_of(merged(SMALL, values))
    store = Store(tmp_path)
    report = compare.run(settings, store)
    page = report.file("comparison.md").read_text()
    for name in ("SEMINAR", "SIM-hard", "SEMINAR / no queries", "SEMINAR L=2", "popularity"):
        assert name in page
    figures = json.loads(report.file("comparison.json").read_text())
    origins = {line["query_origin"] for line in figures["results"]}
    assert {"typed", "none"} <= origins
    assert all(line["runs"] in (1, 2) for line in figures["results"])
    assert "compare: SIM-hard, seed 1" in capsys.readouterr().out
    runs = store.versions(RUN)
    assert compare.run(settings, store).version == report.version
    assert store.versions(RUN) == runs, "a rerun trains nothing"


def test_the_comparisons_of_the_repository_are_valid() -> None:
    for name in ("compare.toml", "compare_long.toml", "compare_none.toml", "compare_small.toml", "ablations.toml"):
        settings = load_settings(Path(__file__).parent.parent / "configs" / name)
        assert settings.compare.models[0] == "seminar"
        plans = [*variant_plans(settings, {}), *(p for kind in settings.compare.models for p in model_plans(settings, kind, {}))]
        assert len({plan.settings.model_dump_json() for plan in plans}) == len(plans) > 0


def test_every_kind_has_a_name_and_a_unit() -> None:
    kinds = set(CompareConfig().models)
    assert set(NAMES) == kinds
    assert set(UNITS) == kinds - {"seminar"}
    assert ModelConfig().kind == "seminar"
