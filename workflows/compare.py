"""compare: every model of the field on the same data, features, budget and protocol -> one report.

    random search a model (validation) -> each model under every seed (test) -> variants -> figures, tests, plots, costs

Every PSU and every run is one Ray task on `ray.cpus_per_worker` cores and one artefact; a rerun finds what is finished and goes
on from the checkpoints of what is not.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc

from seminar.artifacts import Artifact, Store
from seminar.compare.cost import score_times
from seminar.compare.plan import draws, model_plans, trial_plans, variant_plans
from seminar.compare.run import ROWS, require_lists
from seminar.config import Kind, Settings
from seminar.evaluate.aligned import MODEL, Trained
from seminar.evaluate.comparison import Comparison, compare
from seminar.evaluate.comparison_report import write_comparison
from seminar.evaluate.evaluation import FULL, SAMPLED, Rows
from seminar.evaluate.metrics import ranking_metrics
from seminar.models import NAMES
from seminar.progress import Progress
from seminar.provenance import machine
from seminar.schema import ORIGINS
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards
from workflows import embed, prepare
from workflows.compare_grid import Done, Grid
from workflows.runtime import ray_session

COMPARISON = "comparison"
CHOSEN_BY = "NDCG@10"
Chosen = dict[Kind, dict[str, Any]]


def run(settings: Settings, store: Store) -> Artifact:
    """Train and evaluate the whole grid and publish a `comparison`; finished runs are not repeated."""
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    with ray_session(settings.ray):
        require_lists(prepare.run(settings, store), settings)
        embed.run(settings, store)
        grid = Grid(settings, store, {kind: store.open(kind) for kind in ("pairs", "vectors")})
        # All at once, before the search needs the first: one alone would leave the other cores idle.
        grid.pretrain([plan for kind in settings.compare.models for plan in model_plans(settings, kind, {})])
        chosen, tuning = _tuned(grid)
        models = grid.results([plan for kind in settings.compare.models for plan in model_plans(settings, kind, chosen[kind])])
        variants = grid.results(variant_plans(settings, chosen))
        times = _times(grid, [done for done in models if done.plan.seed == settings.compare.seeds[0]])
    # Only models as they are were timed: a variant has other costs.
    runs = [done.trained(times[done.kind]) for done in models]
    comparison = _compared(settings, runs, [done.trained({}) for done in variants])
    inputs = {f"{ROWS}-{i}": done.rows for i, done in enumerate([*models, *variants])}
    draft = store.draft(COMPARISON, {**grid.inputs, **inputs}, {"compare": settings.compare.model_dump(mode="json")})
    versions = {kind: artifact.version for kind, artifact in grid.inputs.items()} | {COMPARISON: draft.version}
    trained_at = sorted({done.run.manifest.metrics.get("commit", "unknown") for done in (*models, *variants)})
    signed = {"date": datetime.now(UTC).date().isoformat(), "commits of the runs": ", ".join(trained_at), "machine": machine()}
    write_comparison(draft.path, comparison, settings.evaluate, tuning, versions | signed)
    _print(comparison)
    return store.publish(draft, {"runs": len(inputs), "reference": comparison.reference})


def _tuned(grid: Grid) -> tuple[Chosen, list[dict[str, object]]]:
    """Each model's best settings of the same random search, and a row a model that says so."""
    settings = grid.settings
    trials = draws(settings, np.random.default_rng(settings.evaluate.seed))
    if not trials:
        return {kind: {} for kind in settings.compare.models}, []
    plans = [plan for kind in settings.compare.models for plan in trial_plans(settings, kind, trials)]
    done = iter(grid.results(plans))
    chosen: Chosen = {}
    table: list[dict[str, object]] = []
    for kind in settings.compare.models:
        values = [_validation(next(done).rows) for _ in trials]
        best = int(np.argmax(values))
        chosen[kind] = trials[best]
        shown = ", ".join(f"{name} {value:g}" for name, value in trials[best].items()) or "as given"
        spread = f"{min(values):.4f} to {max(values):.4f}"
        table.append({"model": NAMES[kind], "trials": len(trials), f"validation {CHOSEN_BY}": spread, "chosen": shown})
    return chosen, table


def _validation(rows: Artifact) -> float:
    """Mean over lists; where queries have several origins, the mean over lists of each, so that none decides by its number."""
    ranked = Rows.read(rows.path).ranked
    own = ranked.filter(pc.and_(pc.equal(ranked["scorer"], MODEL), pc.equal(ranked["protocol"], SAMPLED)))
    value = ranking_metrics(*(own[name].to_numpy() for name in ("above", "tied", "others")))[CHOSEN_BY]
    origin = np.array(own["query_origin"].to_pylist())
    asked = [one for one in np.unique(origin) if one != ORIGINS[0]]
    # Pairs without a query belong to the setting that the data's queries make, as in the report.
    return float(value.mean() if len(asked) <= 1 else np.mean([value[origin == one].mean() for one in asked]))


def _compared(settings: Settings, runs: Sequence[Trained], variants: Sequence[Trained]) -> Comparison:
    """Models over all seeds; the whole catalogue over the first seed; variants with the reference under the same seeds."""
    config = settings.compare
    reference = NAMES[config.models[0]]
    whole = compare([_only(run, sampled=True) for run in runs], reference, _generator(settings))
    lines, roles, everyone = list(whole.lines), dict(whole.roles), [*whole.runs]
    full = [_only(run, sampled=False) for run in runs if run.seed == config.seeds[0]]
    if all(len(run.rows.ranked) for run in full):
        lines += compare(full, reference, _generator(settings)).lines
    if variants:
        same = [run for run in runs if run.name == reference and run.seed in config.paired_seeds]
        beside = compare([_only(run, sampled=True) for run in (*same, *variants)], reference, _generator(settings))
        lines += [line for line in beside.lines if line["scorer"] not in roles]
        roles |= {name: role for name, role in beside.roles.items() if name not in roles}
        everyone += variants
    return Comparison(reference, roles, tuple(everyone), lines)


def _only(run: Trained, *, sampled: bool) -> Trained:
    """The rows of the whole catalogue, or all others."""
    ranked, impressions = run.rows.ranked, run.rows.impressions
    full = pc.equal(ranked["protocol"], FULL)
    rows = Rows(ranked.filter(pc.invert(full) if sampled else full), impressions if sampled else impressions.slice(0, 0), {})
    return replace(run, rows=rows)


def _times(grid: Grid, models: Sequence[Done]) -> dict[Kind, dict[int, float]]:
    """Time of a score by length, one model after another on this machine."""
    pairs, lengths = grid.inputs["pairs"], grid.settings.compare.cost_lengths
    histories = read_shards(shard_paths(pairs))
    times = {}
    with Progress("compare: cost of a score", len(models), "models") as progress:
        for done in models:
            times[done.kind] = score_times(done.run, grid.inputs["vectors"], histories, lengths)
            progress.advance(1)
    return times


def _generator(settings: Settings) -> np.random.Generator:
    return np.random.default_rng(settings.evaluate.seed)


def _print(comparison: Comparison) -> None:
    """The main line of every model, best first."""
    own = [line for line in comparison.lines if line["protocol"] == SAMPLED and line["slice"] == "all" and line["main"]]
    for line in sorted(own, key=lambda line: -line["metrics"][CHOSEN_BY]["value"]):
        figures = "  ".join(f"{name} {line['metrics'][name]['value']:.4f}" for name in (CHOSEN_BY, "HIT@10", "AUC"))
        print(f"compare: {line['scorer']:<32} {figures}")
