"""The runs of a comparison as Ray tasks: what is missing is trained and scored, what is finished is found."""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from seminar.artifacts import Artifact, Store, write_atomically
from seminar.compare.cost import search_bytes
from seminar.compare.plan import Plan
from seminar.compare.run import PSU, ROWS, RUN, pretrained, psu_version, rows_version, run_inputs, run_version, scored, trained
from seminar.config import EvaluateConfig, Kind, Settings, settings_of
from seminar.errors import ConfigError, explain
from seminar.evaluate.aligned import Cost, Trained
from seminar.evaluate.evaluation import Rows
from seminar.progress import Progress
from workflows.runtime import stream


@dataclass(frozen=True)
class Done:
    """A plan and what became of it; psu: what its training started from."""

    plan: Plan
    run: Artifact
    rows: Artifact
    psu: Artifact | None

    @property
    def kind(self) -> Kind:
        return self.plan.settings.model.kind

    def trained(self, us: Mapping[int, float]) -> Trained:
        """As figures are made of it; `us`: measured microseconds a target by history length."""
        metrics, config = self.run.manifest.metrics, self.plan.settings.model
        cost = Cost(
            train_s=metrics["seconds"],
            pretrain_s=0.0 if self.psu is None else self.psu.manifest.metrics["seconds"],
            train_pairs_per_s=metrics["pairs_per_s"],
            parameters=metrics["parameters"],
            score_us_per_target=us,
            search_bytes={length: search_bytes(config, length) for length in us},
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
        # One task a run: two of them would write one draft. It scores under every protocol that is asked for.
        missing: dict[str, list[Plan]] = {}
        for plan in plans:
            version, done = self._find(plan)
            if done is None:
                missing.setdefault(version, []).append(plan)
        self._perform(RUN, missing)
        found = [done for _, done in map(self._find, plans) if done is not None]
        assert len(found) == len(plans), "every task publishes what it was asked for"
        return found

    def pretrain(self, plans: Sequence[Plan]) -> None:
        """The PSUs that these plans start from."""
        starts = {psu_version(self.store, self.inputs, p.settings): [p] for p in plans if p.settings.finetune.pretrained}
        self._perform(PSU, {version: same for version, same in starts.items() if not self.store.exists(PSU, version)})

    def _find(self, plan: Plan) -> tuple[str, Done | None]:
        """Version of the plan's run, and what became of the plan if its rows are there."""
        inputs = run_inputs(self.store, self.inputs, plan.settings)
        version = run_version(self.store, inputs, plan.settings)
        if not self.store.exists(RUN, version):
            return version, None
        run = self.store.open(RUN, version)
        rows = rows_version(self.store, run, plan.settings.evaluate)
        if not self.store.exists(ROWS, rows):
            return version, None
        return version, Done(plan, run, self.store.open(ROWS, rows), inputs.get(PSU))

    def _perform(self, kind: str, plans: Mapping[str, Sequence[Plan]]) -> None:
        """One Ray task a version."""
        if not plans:
            return
        section = "pretrain" if kind == PSU else "finetune"
        steps = sum(getattr(same[0].settings, section).steps for same in plans.values())
        rows = [self._row(kind, version, same) for version, same in plans.items()]
        with _watched(f"compare: {len(rows)} x {section}", steps, [Path(row["progress"]) for row in rows]):
            for done in stream(perform, rows, self.settings.ray, gpus=True):
                print(f"compare: {done['name']}, seed {done['seed']}: {done['seconds']:.0f} s", flush=True)

    def _row(self, kind: str, version: str, plans: Sequence[Plan]) -> dict[str, Any]:
        return {
            "kind": kind,
            "root": str(self.store.root),
            "inputs": json.dumps({name: artifact.version for name, artifact in self.inputs.items()}),
            "settings": plans[0].settings.model_dump_json(),
            "protocols": json.dumps([plan.settings.evaluate.model_dump(mode="json") for plan in plans]),
            "name": plans[0].name if kind == RUN else "pretraining",
            "seed": plans[0].seed,
            "progress": str(self.store.root / kind / f".draft-{version}" / "_progress.json"),
        }


def perform(row: dict[str, Any]) -> dict[str, Any]:
    """Train one PSU, or train and score one run, on a worker."""
    began = time.perf_counter()
    settings, store = settings_of(json.loads(row["settings"])), Store(row["root"])
    torch.set_num_threads(max(int(settings.ray.cpus_per_worker), 1))
    inputs = {name: store.open(name, version) for name, version in json.loads(row["inputs"]).items()}
    device = torch.device("cuda" if settings.ray.gpus_per_worker else "cpu")
    written = [0.0]

    def on_step(step: dict[str, Any]) -> None:
        if time.monotonic() - written[0] > 1:
            written[0] = time.monotonic()
            write_atomically(Path(row["progress"]), json.dumps(step["step"]))

    try:
        if row["kind"] == PSU:
            pretrained(store, inputs, settings, device, on_step)
        else:
            run = trained(store, inputs, settings, device, on_step)
            for protocol in json.loads(row["protocols"]):
                scored(store, inputs, run, EvaluateConfig.model_validate(protocol), device)
    except FloatingPointError as error:
        what = f"run {row['name']!r}, seed {row['seed']}"
        fix = "lower its learning rates, or take that value out of compare.search"
        raise ConfigError(explain(what, got=str(error), expected="finite losses", fix=fix)) from error
    return {"name": row["name"], "seed": row["seed"], "seconds": time.perf_counter() - began}


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
