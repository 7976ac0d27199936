"""compare: every model of the field on the same data, features, budget and protocol -> one report.

    random search a model (validation) -> each model under every seed (test) -> variants -> figures, tests, plots, costs

Every PSU and every run is one Ray task on `ray.cpus_per_worker` cores and one artefact; a rerun finds what is finished and goes
on from the checkpoints of what is not.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from seminar.artifacts import Artifact, Store, write_atomically
from seminar.compare.cost import history_bytes, score_times
from seminar.compare.plan import Plan, draws, model_plans, trial_plans, variant_plans
from seminar.compare.run import PSU, ROWS, RUN, pretrained, psu_version, rows_version, run_inputs, run_version, scored, trained
from seminar.config import Kind, Settings, settings_of
from seminar.evaluate.aligned import MODEL, Cost, Trained
from seminar.evaluate.comparison import Comparison, compare
from seminar.evaluate.comparison_report import write_comparison
from seminar.evaluate.evaluation import FULL, SAMPLED, Rows
from seminar.evaluate.metrics import ranking_metrics
from seminar.models import NAMES
from seminar.progress import Progress
from seminar.provenance import commit, machine
from seminar.sequences import Histories, read_histories
from seminar.train.build import shard_paths
from workflows import embed, prepare
from workflows.runtime import ray_session, stream

COMPARISON = "comparison"
CHOSEN_BY = "NDCG@10"
Chosen = dict[Kind, dict[str, Any]]


def run(settings: Settings, store: Store) -> Artifact:
    """Train and evaluate the whole grid and publish a `comparison`; finished runs are not repeated."""
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    with ray_session(settings.ray):
        prepare.run(settings, store)
        embed.run(settings, store)
        grid = Grid(settings, store, {kind: store.open(kind) for kind in ("pairs", "vectors")})
        # All at once, before the search needs the first: one alone would leave the other cores idle.
        grid.pretrain([plan for kind in settings.compare.models for plan in model_plans(settings, kind, {})])
        chosen, tuning = _tuned(grid)
        models = grid.results([plan for kind in settings.compare.models for plan in model_plans(settings, kind, chosen[kind])])
        variants = grid.results(variant_plans(settings, chosen))
        times = _times(grid, [done for done in models if done.plan.seed == settings.compare.seeds[0]])
    comparison = _compared(settings, [done.trained(times) for done in models], [done.trained(times) for done in variants])
    inputs = {f"{ROWS}-{i}": done.rows for i, done in enumerate([*models, *variants])}
    draft = store.draft(COMPARISON, {**grid.inputs, **inputs}, {"compare": settings.compare.model_dump(mode="json")})
    lengths = {NAMES[kind]: settings.finetune.max_history for kind in settings.compare.length_models}
    versions = {kind: artifact.version for kind, artifact in grid.inputs.items()} | {COMPARISON: draft.version}
    signed = {"date": datetime.now(UTC).date().isoformat(), "commit": commit(), "machine": machine()}
    write_comparison(draft.path, comparison, settings.evaluate, tuning, versions | signed, lengths)
    _print(comparison)
    return store.publish(draft, {"runs": len(inputs), "reference": comparison.reference})


@dataclass(frozen=True)
class Done:
    """A plan and what became of it."""

    plan: Plan
    run: Artifact
    rows: Artifact

    @property
    def kind(self) -> Kind:
        return self.plan.settings.model.kind

    def trained(self, times: Mapping[Kind, Mapping[int, float]]) -> Trained:
        """As figures are made of it; `times`: cost of a score by kind and history length."""
        metrics, config = self.run.manifest.metrics, self.plan.settings.model
        us = times.get(self.kind, {})
        cost = Cost(
            train_s=metrics["seconds"],
            train_pairs_per_s=metrics["pairs_per_s"],
            parameters=metrics["parameters"],
            score_us_per_target=us,
            bytes_per_user={length: history_bytes(config, length) for length in us},
        )
        recorded = {name: self.run.manifest.config[name] for name in ("model", "finetune")}
        curve = pq.read_table(self.run.file("curve.parquet"))
        return Trained(self.plan.name, self.plan.seed, Rows.read(self.rows.path), cost, recorded, curve)


@dataclass(frozen=True)
class Grid:
    """Where runs come from and go to."""

    settings: Settings
    store: Store
    inputs: dict[str, Artifact]

    def results(self, plans: Sequence[Plan]) -> list[Done]:
        """Every plan, trained and scored where it is not yet; the PSUs that runs start from come first."""
        self.pretrain(plans)
        missing = {f"{self._version(plan)}-{plan.settings.evaluate.split}": plan for plan in plans if self._find(plan) is None}
        self._perform(RUN, missing)
        found = [self._find(plan) for plan in plans]
        assert None not in found, "every task publishes what it was asked for"
        return [done for done in found if done is not None]

    def pretrain(self, plans: Sequence[Plan]) -> None:
        """The PSUs that these plans start from."""
        starts = {psu_version(self.store, self.inputs, p.settings): p for p in plans if p.settings.finetune.pretrained}
        self._perform(PSU, {version: plan for version, plan in starts.items() if not self.store.exists(PSU, version)})

    def _version(self, plan: Plan) -> str:
        return run_version(self.store, run_inputs(self.store, self.inputs, plan.settings), plan.settings)

    def _find(self, plan: Plan) -> Done | None:
        version = self._version(plan)
        if not self.store.exists(RUN, version):
            return None
        run = self.store.open(RUN, version)
        rows = rows_version(self.store, run, plan.settings.evaluate)
        return Done(plan, run, self.store.open(ROWS, rows)) if self.store.exists(ROWS, rows) else None

    def _perform(self, kind: str, plans: Mapping[str, Plan]) -> None:
        """One Ray task a version."""
        if not plans:
            return
        section = "pretrain" if kind == PSU else "finetune"
        steps = sum(getattr(plan.settings, section).steps for plan in plans.values())
        rows = [self._row(kind, version.partition("-")[0], plan) for version, plan in plans.items()]
        with _watched(f"compare: {len(rows)} x {section}", steps, [Path(row["progress"]) for row in rows]):
            for done in stream(perform, rows, self.settings.ray):
                print(f"compare: {done['name']}, seed {done['seed']}: {done['seconds']:.0f} s", flush=True)

    def _row(self, kind: str, version: str, plan: Plan) -> dict[str, Any]:
        return {
            "kind": kind,
            "root": str(self.store.root),
            "inputs": json.dumps({name: artifact.version for name, artifact in self.inputs.items()}),
            "settings": plan.settings.model_dump_json(),
            "name": plan.name if kind == RUN else "pretraining",
            "seed": plan.seed,
            "progress": str(self.store.root / kind / f".draft-{version}" / "_progress.json"),
        }


def perform(row: dict[str, Any]) -> dict[str, Any]:
    """Train one PSU or one run on a worker."""
    began = time.perf_counter()
    settings, store = settings_of(json.loads(row["settings"])), Store(row["root"])
    torch.set_num_threads(max(int(settings.ray.cpus_per_worker), 1))
    inputs = {name: store.open(name, version) for name, version in json.loads(row["inputs"]).items()}
    written = [0.0]

    def on_step(step: dict[str, float]) -> None:
        if time.monotonic() - written[0] > 1:
            written[0] = time.monotonic()
            write_atomically(Path(row["progress"]), json.dumps(step["step"]))

    device = torch.device("cuda" if settings.ray.gpus_per_worker else "cpu")
    if row["kind"] == PSU:
        pretrained(store, inputs, settings, on_step)
    else:
        run = trained(store, inputs, settings, device, on_step)
        scored(store, inputs, run, settings.evaluate, device)
    return {"name": row["name"], "seed": row["seed"], "seconds": time.perf_counter() - began}


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
    ranked = Rows.read(rows.path).ranked
    own = ranked.filter(pc.and_(pc.equal(ranked["scorer"], MODEL), pc.equal(ranked["protocol"], SAMPLED)))
    return float(ranking_metrics(*(own[name].to_numpy() for name in ("above", "tied", "others")))[CHOSEN_BY].mean())


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
    histories: Histories = read_histories(pa.concat_tables([pq.read_table(path) for path in shard_paths(pairs)]))
    times = {}
    with Progress("compare: cost of a score", len(models), "models") as progress:
        for done in models:
            times[done.kind] = score_times(done.run, grid.inputs["vectors"], histories, lengths)
            progress.advance(1)
    return times


@contextmanager
def _watched(stage: str, steps: int, files: Sequence[Path]) -> Iterator[None]:
    """Progress over the steps of all tasks, from the small file that each writes; a finished draft is gone and counts whole."""
    stop = threading.Event()
    per_task = steps // max(len(files), 1)
    begun: set[Path] = set()

    def done() -> int:
        counts = {path: int(json.loads(path.read_text())) for path in files if path.is_file()}
        begun.update(counts)
        return sum(counts.get(path, per_task) for path in begun)

    with Progress(stage, steps, "steps") as progress:

        def poll() -> None:
            while not stop.wait(1.0):
                try:
                    progress.advance(max(done() - progress.done, 0))
                except OSError:
                    continue  # the draft was published between two looks

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _generator(settings: Settings) -> np.random.Generator:
    return np.random.default_rng(settings.evaluate.seed)


def _print(comparison: Comparison) -> None:
    """The main line of every model, best first."""
    own = [line for line in comparison.lines if line["protocol"] == SAMPLED and line["slice"] == "all" and line["main"]]
    for line in sorted(own, key=lambda line: -line["metrics"][CHOSEN_BY]["value"]):
        figures = "  ".join(f"{name} {line['metrics'][name]['value']:.4f}" for name in (CHOSEN_BY, "HIT@10", "AUC"))
        print(f"compare: {line['scorer']:<32} {figures}")
