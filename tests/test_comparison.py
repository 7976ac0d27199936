"""Many runs to one table: planted and absent differences, tests against enumeration, runs that do not match, the report."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from seminar.config import EvaluateConfig
from seminar.errors import DataError, InfeasibleMetrics
from seminar.evaluate.aligned import Cost, Trained
from seminar.evaluate.comparison import Comparison, compare
from seminar.evaluate.comparison_plots import length_curves
from seminar.evaluate.comparison_report import write_comparison
from seminar.evaluate.comparison_words import losses
from seminar.evaluate.evaluation import FULL, IMPRESSIONS, RANKED, SAMPLED, Rows
from seminar.evaluate.metrics import auc, gauc, log_loss, ranking_metrics, weighted_auc
from seminar.evaluate.paired import holm, pooled_auc, sign_flip_p
from seminar.evaluate.protocol import FLOORS, IN_HISTORY, POPULARITY
from seminar.evaluate.summary import ALL, LENGTH, summarise

USERS, SHOWN = 150, 6
COST = Cost(60.0, 0.0, 50_000.0, 1_000, {200: 2.0, 1000: 5.0}, {200: 4e3, 1000: 2e4})


def made_rows(seed: int, lift: float = 0.0, origins: tuple[str, ...] = ("none", "typed"), pairs: int = 1) -> Rows:
    """Runs share every fact and the floors' counts; the model's scores depend on `seed`, better by about `lift` places of 99."""
    facts, own = np.random.default_rng(99), np.random.default_rng(seed)
    ranked, shown = [], []
    for user in range(USERS):
        length, ease = int(facts.integers(1, 900)), int(facts.integers(5, 40))
        for position in range(pairs):
            unseen, repeat, origin = (
                bool(facts.random() < 0.2),
                bool(facts.random() < 0.4),
                origins[(user + position) % len(origins)],
            )
            for protocol, others in ((SAMPLED, 99), *([(FULL, 999)] if user < 40 else [])):
                common = (origin, "ctr", length + position, unseen, repeat)
                above = {"model": max(int(ease + own.integers(-5, 6) - lift), 0)}
                above |= {POPULARITY: int(facts.integers(20, 60)), IN_HISTORY: int(facts.integers(10, 50))}
                ranked += [(f"u{user:03d}", position, protocol, s, *common, above[s], int(s != "model"), others) for s in above]
        for i in range(SHOWN):
            score = {s: float(facts.normal()) for s in FLOORS} | {"model": float(own.normal() + (i < 2) * (0.5 + 0.1 * lift))}
            shown += [(f"u{user:03d}", s, origins[-1], user % 3, int(i < 2), score[s]) for s in score]
    return Rows.concat([Rows(_table(ranked, RANKED), _table(shown, IMPRESSIONS), {})])


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


def trained(name: str, seed: int, rows: Rows) -> Trained:
    step = np.arange(1, 60)
    return Trained(name, seed, rows, COST, {"lr": 1e-3, "path": Path("x")}, pa.table({"step": step, "loss": 1 / step}))


def compared(*runs: Trained, reference: str = "ours", **changes: Any) -> Comparison:
    return compare(runs, reference, np.random.default_rng(1), **{"replicates": 200, "flips": 2000, **changes})


def line(
    comparison: Comparison, name: str, protocol: str = SAMPLED, origin: str = "none+typed", part: str = ALL
) -> dict[str, Any]:
    keys = ("scorer", "protocol", "query_origin", "bin")
    return next(x for x in comparison.lines if tuple(x[k] for k in keys) == (name, protocol, origin, part))


@pytest.fixture(scope="module")
def field() -> Comparison:
    """Ours over three seeds, one rival far worse, one equal, variants of ours."""
    names = {"ours": 8.0, "weak": 0.0, "equal": 8.0, "ours / no query": 6.0, "ours L=50": 4.0, "ours L=1000": 8.0}
    runs = [trained(n, s, made_rows(100 * i + s, lift)) for i, (n, lift) in enumerate(names.items()) for s in (1, 2, 3)]
    return compared(*runs)


def test_sign_flip_p_equals_full_enumeration_for_8_users() -> None:
    difference = np.random.default_rng(0).normal(0.4, 1, (8, 3))
    observed = np.abs(difference.sum(0))
    count = sum(np.abs(np.array(signs) @ difference) >= observed - 1e-12 for signs in itertools.product((-1, 1), repeat=8))
    assert sign_flip_p(difference, np.random.default_rng(1)) == pytest.approx(count / 2**8)


def test_drawn_signs_come_near_the_enumeration() -> None:
    difference = np.random.default_rng(2).normal(0.3, 1, (12, 4))
    exact = sign_flip_p(difference, np.random.default_rng(3), flips=5000)
    drawn = sign_flip_p(difference, np.random.default_rng(3), flips=4000)
    assert drawn == pytest.approx(exact, abs=0.03)
    assert not np.array_equal(exact, drawn), "2 ** 12 = 4,096 lies between the two"


def test_sign_flip_p_is_uniform_where_models_are_equal() -> None:
    difference = np.random.default_rng(4).standard_t(3, (60, 2000))
    p = sign_flip_p(difference, np.random.default_rng(5), flips=500)
    for level in (0.05, 0.25, 0.5, 0.9):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 2000))


def test_p_is_1_without_a_difference_and_never_0() -> None:
    difference = np.stack([np.zeros(100), np.ones(100)], 1)
    assert sign_flip_p(difference, np.random.default_rng(6), flips=999) == pytest.approx([1.0, 1 / 1000])


def test_holm_against_a_hand_example() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1 is .04, .06, .06, .04, and no p falls below an earlier one.
    assert holm(np.array([0.04, 0.01, np.nan, 0.03, 0.02])) == pytest.approx([0.06, 0.04, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_pooled_auc_under_user_weights_is_that_of_repeated_rows() -> None:
    rng = np.random.default_rng(7)
    score, label, user = rng.integers(0, 9, 80).astype(float), rng.integers(0, 2, 80), rng.integers(0, 12, 80)
    weight = rng.integers(0, 4, (20, 12)).astype(float)
    expected = weighted_auc(score, label)(weight[:, user])
    assert pooled_auc(score, label, user, 12)(weight)[:, 0] == pytest.approx(expected)
    nobody = pooled_auc(score, label, user, 12)(np.zeros((1, 12)))
    assert math.isnan(nobody[0, 0])


def test_figures_are_those_of_one_run_alone() -> None:
    rows = made_rows(1, pairs=2)
    comparison = compared(trained("ours", 1, rows))
    for other in summarise([rows], np.random.default_rng(0), replicates=50):
        name = "ours" if other["scorer"] == "model" else other["scorer"]
        own = line(comparison, name, other["protocol"], other["query_origin"], other["bin"])
        assert (own["users"], own["rows"], own["notes"].get("mean_others", 0)) == (
            other["users"],
            other["rows"],
            other["notes"].get("mean_others", 0),
        )
        for metric, figure in other["metrics"].items():
            assert own["metrics"][metric]["value"] == pytest.approx(figure["value"]), (metric, other)


def test_impression_figures_are_those_of_the_metrics_they_are_made_of() -> None:
    rows = made_rows(1, 4.0)
    table = rows.impressions.filter(pc.equal(rows.impressions["scorer"], "model"))
    score, label = table["score"].to_numpy(), table["label"].to_numpy()
    group = np.unique(table["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    comparison = compared(trained("ours", 1, rows), trained("other", 1, made_rows(2)))
    found = line(comparison, "ours", "impressions", "typed")["metrics"]
    wanted = {"AUC": auc(score, label), "gAUC": gauc(score, label, group)[0], "log-loss": log_loss(score, label).mean()}
    assert {name: figure["value"] for name, figure in found.items()} == pytest.approx(wanted)
    assert "log-loss" not in line(comparison, POPULARITY, "impressions", "typed")["metrics"], "a floor gives no probability"
    apart = line(comparison, "other", "impressions", "typed")["differences"]
    assert apart["AUC"]["p"] is None, "no mean over users"
    assert apart["gAUC"]["p"] < 0.01
    assert apart["log-loss"]["p"] is not None


def test_a_planted_difference_is_found(field: Comparison) -> None:
    apart = line(field, "weak")["differences"]["NDCG@10"]
    assert apart["value"] < apart["high"] < 0
    assert apart["p"] == pytest.approx(1 / 2001)
    assert apart["p_holm"] == pytest.approx(2 / 2001), "two rivals; variants and floors are families of their own"
    assert line(field, "equal")["differences"]["AUC"]["p"] > 0.05


def test_the_same_scorer_twice_is_no_difference() -> None:
    comparison = compared(trained("ours", 1, made_rows(1)), trained("twin", 1, made_rows(1)))
    for own in (x for x in comparison.lines if x["scorer"] == "twin"):
        for metric, apart in own["differences"].items():
            assert (apart["value"], apart["low"], apart["high"]) == (0, 0, 0)
            assert apart["p"] == 1 or (metric == "AUC" and own["protocol"] == "impressions" and apart["p"] is None)
    assert "differences" not in line(comparison, "ours")


def test_p_is_of_the_per_user_differences_averaged_over_seeds() -> None:
    runs = [trained(name, seed, made_rows(10 * seed + i, i * 0.7)) for i, name in enumerate(("ours", "rival")) for seed in (1, 2)]
    per_user = []
    for run in runs:
        own = run.rows.ranked.filter(
            pc.and_(pc.equal(run.rows.ranked["scorer"], "model"), pc.equal(run.rows.ranked["protocol"], SAMPLED))
        )
        per_user.append(ranking_metrics(*(own[name].to_numpy() for name in ("above", "tied", "others")))["MRR"])
    difference = (per_user[2] + per_user[3] - per_user[0] - per_user[1])[:, None] / 2
    apart = line(compared(*runs, flips=10_000), "rival")["differences"]["MRR"]
    assert apart["value"] == pytest.approx(difference.mean())
    assert apart["p"] == pytest.approx(sign_flip_p(difference, np.random.default_rng(8))[0], abs=0.02)


def test_values_by_seed_average_to_the_mean(field: Comparison) -> None:
    for own in field.lines:
        seeds = 1 if own["role"] == "floor" else 3
        assert own["runs"] == seeds
        for figure in own["metrics"].values():
            assert len(figure["by_seed"]) == seeds
            assert np.mean(figure["by_seed"]) == pytest.approx(figure["value"])
    assert line(field, "ours")["seeds"] == [1, 2, 3]


def test_seeds_widen_the_interval_beyond_that_of_users() -> None:
    ours = [trained("ours", 1, made_rows(1))]
    rival = [trained("rival", seed, made_rows(1, lift)) for seed, lift in enumerate((0.0, 5.0, 10.0))]
    apart = line(compared(*ours, *rival), "rival")["differences"]["AUC"]
    assert apart["low"] < apart["low_users"] < apart["value"] < apart["high_users"] < apart["high"]


def test_roles_tell_rivals_from_variants_and_floors(field: Comparison) -> None:
    assert field.roles == {
        "ours": "reference",
        "weak": "rival",
        "equal": "rival",
        "ours / no query": "variant",
        "ours L=50": "variant",
        "ours L=1000": "variant",
        POPULARITY: "floor",
        IN_HISTORY: "floor",
    }


def test_query_origins_are_never_pooled() -> None:
    three = compared(trained("ours", 1, made_rows(1, origins=("none", "typed", "tag"))))
    assert {x["query_origin"] for x in three.lines} == {"none", "typed", "tag"}
    one = compared(trained("ours", 1, made_rows(1)))
    ranked = {(x["query_origin"], x["main"]) for x in one.lines if x["protocol"] == SAMPLED}
    assert ranked == {("none+typed", True), ("none", False), ("typed", False)}, (
        "no query belongs to the setting of the one origin"
    )


def test_slices_of_every_protocol_share_out_all_rows(field: Comparison) -> None:
    for protocol, origin in ((SAMPLED, "none+typed"), (SAMPLED, "none"), (FULL, "none+typed"), ("impressions", "typed")):
        own = [x for x in field.lines if (x["scorer"], x["protocol"], x["query_origin"]) == ("ours", protocol, origin)]
        for name in {x["slice"] for x in own} - {ALL}:
            assert sum(x["rows"] for x in own if x["slice"] == name) == own[0]["rows"]
        assert {x["slice"] for x in own} == ({ALL, LENGTH} if protocol == "impressions" else {ALL, LENGTH, "repeat", "unseen"})
        assert len([x for x in own if x["slice"] == LENGTH]) == 4


def _changed(column: str, value: object) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        table = rows.impressions if column in ("label", "query") else rows.ranked
        values = table[column].to_pylist()
        values[7] = value
        at = table.schema.names.index(column)
        table = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
        return replace(rows, impressions=table) if column in ("label", "query") else replace(rows, ranked=table)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed("position", 5), "position"),
        (_changed("others", 98), "others"),
        (_changed("history_length", 901), "history_length"),
        (_changed("query_origin", "tag"), "query_origin"),
        (_changed("query", 77), "query"),
        (lambda rows: replace(rows, ranked=rows.ranked.slice(3)), "expected 190 as in the first run"),
        (lambda rows: replace(rows, impressions=rows.impressions.slice(0, 0)), "got 0, expected 900"),
    ],
)
def test_runs_on_other_requests_are_refused_with_what_differs(change: Callable[[Rows], Rows], said: str) -> None:
    rows = made_rows(2)
    with pytest.raises(DataError, match=f"run rival, seed 4.*{said}"):
        compared(trained("ours", 1, made_rows(1)), trained("rival", 4, change(rows)))


def test_other_negatives_are_noticed_by_the_floor() -> None:
    rows = made_rows(2)
    above = rows.ranked["above"].to_numpy() + (rows.ranked["scorer"].to_numpy(zero_copy_only=False) == POPULARITY)
    at = rows.ranked.schema.names.index("above")
    other = replace(rows, ranked=rows.ranked.set_column(at, rows.ranked.schema.field(at), pa.array(above)))
    with pytest.raises(DataError, match=f"rows of `{POPULARITY}`: above at protocol"):
        compared(trained("ours", 1, made_rows(1)), trained("rival", 1, other))


def test_the_order_of_rows_does_not_matter() -> None:
    rows = made_rows(2, 3.0)
    mixed = np.random.default_rng(9).permutation(len(rows.ranked))
    moved = pa.concat_tables([rows.impressions.slice(100), rows.impressions.slice(0, 100)])
    shuffled = Rows(rows.ranked.take(pa.array(mixed)), moved, {})
    ours = trained("ours", 1, made_rows(1))
    assert compared(ours, trained("rival", 1, rows)).lines == compared(ours, trained("rival", 1, shuffled)).lines


def test_runs_that_cannot_be_compared_are_one_sentence() -> None:
    run = trained("ours", 1, made_rows(1))
    with pytest.raises(DataError, match="run ours, seed 1: got it twice"):
        compared(run, run)
    with pytest.raises(DataError, match="reference: got theirs, expected one of ours"):
        compared(run, reference="theirs")
    with pytest.raises(DataError, match="floor's name"):
        compared(trained(POPULARITY, 1, run.rows))
    with pytest.raises(DataError, match="no held-out pair"):
        compared(replace(run, rows=Rows(RANKED.empty_table(), IMPRESSIONS.empty_table(), {})))
    with pytest.raises(DataError, match="no run"):
        compared()


def test_impossible_figures_are_refused() -> None:
    with pytest.raises(InfeasibleMetrics, match="ours, seed 1"):
        compared(trained("ours", 1, _changed("above", 100_000)(made_rows(1))), replicates=10)


def test_losses_are_told_and_only_where_they_are() -> None:
    better = compared(trained("ours", 1, made_rows(1)), trained("rival", 1, made_rows(2, 8.0)))
    told = "\n".join(losses(better))
    assert "Rivals significantly better than ours" in told
    assert f"rival (sampled ranking, query origin none+typed; {USERS} users): " in told
    worse = "\n".join(losses(compared(trained("ours", 1, made_rows(1, 8.0)), trained("rival", 1, made_rows(2)))))
    assert "No rival is significantly better." in worse


def test_models_of_two_lengths_make_a_curve(field: Comparison) -> None:
    own = [x for x in field.lines if (x["protocol"], x["query_origin"], x["bin"]) == (SAMPLED, "none+typed", ALL)]
    curves = length_curves(own, {"ours": 200, "weak": 200})
    assert {name: list(at) for name, at in curves.items()} == {"ours": [50, 200, 1000]}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, field: Comparison) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    tuning = [
        {"model": "ours", "trials": 8, "best validation NDCG@10": np.float64(0.31), "settings": {"lr": 1e-3}},
        {"model": "weak"},
    ]
    write_comparison(folder, field, EvaluateConfig(), tuning, {"commit": "abc123", "machine": "2 cores"}, {"ours": 200})
    return folder


def test_the_page_holds_every_model_and_the_protocol_before_each_table(report: Path, field: Comparison) -> None:
    page = (report / "comparison.md").read_text()
    for name in field.roles:
        assert f"| {name} " in page or f"| **{name}**" in page
    for said in (
        "**ours** (reference)",
        "equal (best rival)",
        "popularity (floor)",
        "abc123",
        "lr = 0.001",
        "= gAUC",
    ):
        assert said in page
    blocks = page[page.index("## Ranking sampled") : page.index("## Cost")].split("\n\n")
    tables = [i for i, block in enumerate(blocks) if block.startswith("| model")]
    assert len(tables) > 8
    for i in tables:
        assert blocks[i - 1].startswith(("*One held-out behaviour", "*All logged rows")), "what was ranked against what"
    main = page[page.index("| model | seeds |") :].splitlines()[2:]
    scores = [float(row.split("|")[3].split()[0]) for row in itertools.takewhile(lambda row: row.startswith("|"), main)]
    assert scores == sorted(scores, reverse=True)


def test_the_json_holds_every_figure_and_no_nan(report: Path, field: Comparison) -> None:
    document = json.loads((report / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert len(document["results"]) == len(field.lines)
    assert document["results"][0]["metrics"] == field.lines[0]["metrics"]
    assert {run["name"] for run in document["runs"]} == {run.name for run in field.runs}
    assert document["runs"][0]["cost"]["score_us_per_target"] == {"200": 2.0, "1000": 5.0}
    assert document["tuning"][0]["best validation NDCG@10"] == 0.31
    assert document["protocols"].keys() == {SAMPLED, FULL, "impressions"}


def test_plots_are_drawn_and_not_blank(report: Path) -> None:
    names = {path.name for path in report.glob("*.png")}
    stems = ("main_metrics", "by_history_length", "quality_and_cost", "quality_by_length", "ablations", "training_loss")
    assert names == {f"{stem}.png" for stem in stems}
    page = (report / "comparison.md").read_text()
    for name in names:
        assert f"({name})" in page
        image = np.asarray(Image.open(report / name).convert("L"))
        assert min(image.shape) > 200
        assert (image < 128).mean() > 0.003


def test_a_comparison_without_times_variants_or_tuning_leaves_those_out(tmp_path: Path) -> None:
    runs = [
        replace(trained(name, 1, made_rows(i)), cost=Cost(1.0, 0.0, 2.0, 3, {}, {}), curve=None)
        for i, name in enumerate(("ours", "b"))
    ]
    plots = write_comparison(tmp_path, compared(*runs), EvaluateConfig())
    assert plots == ["main_metrics.png", "by_history_length.png"]
    assert "tuning" not in (tmp_path / "comparison.md").read_text()
