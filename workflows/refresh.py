"""refresh: one night's log into the running service, in steps that may be killed anywhere; a rerun of the night does the rest.

    pairs -> vectors -> drift -> codebooks -> index -> bundle -> gates    candidates beside what is in use; refused, nothing moved
    publish -> histories -> swap -> verify                                from the first pointer on, a failure rolls all back

The night continues the bundle in use, its model and its retriever: appended items get vectors, codes and a place in the index.
The ledger under
<workdir>/refresh/<run_id>/ says what is done (seminar/nightly/ledger.py); steps find their artefacts by what they are made from.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

from seminar.artifacts import Artifact, Store, write_atomically
from seminar.bundle import Bundle
from seminar.config import Settings
from seminar.errors import ArtifactError, ConfigError, explain
from seminar.history.opening import open_histories
from seminar.history.store import import_histories
from seminar.nightly.ledger import STEPS, Ledger, NightFailed, name_of_night, night_lock
from seminar.nightly.night_report import render
from seminar.nightly.pointers import POINTERS, current_versions, move_back, move_pointers, restore
from seminar.nightly.refresh import judge, measure, quarantined_share
from seminar.retrieval.regime import OVERFETCH
from serve.deploy import DeployError
from workflows.candidate import Candidate
from workflows.live_service import LiveService
from workflows.runtime import ray_session

BUILD, IN_USE = STEPS[: STEPS.index("gates")], STEPS[STEPS.index("publish") :]


def run(settings: Settings, store: Store) -> Artifact:
    """The bundle in use after the night that `refresh.run_id` or `data.until` names; resumed where an earlier run stopped.

    NightFailed if another night is at work, a gate refused this one, or it was rolled back: then what was in use is in use.
    """
    service = _service(settings)
    name = name_of_night(settings)
    folder = store.root / "refresh"
    with night_lock(folder, f"night {name}"):
        ledger = Ledger.open(folder / name, settings, lambda: _base(store))
        try:
            return Night(settings, store, ledger, service).run()
        finally:
            write_atomically(ledger.folder / "report.md", render(ledger.record))


def rollback(settings: Settings, store: Store) -> Artifact:
    """Back to the bundle before the current one and all it was made from, first in the running service, then on disk.

    A service that refuses it keeps what it serves and nothing moves. Interrupted, the same call finishes it.
    """
    service = _service(settings)
    with night_lock(store.root / "refresh", "a rollback"):
        current, earlier = store.current("bundle"), store.previous("bundle")
        if not earlier:
            fix = "publish twice before rolling back"
            raise ArtifactError(explain("rollback of bundle", got="no earlier version", expected="at least one", fix=fix))
        bundle = store.open("bundle", earlier[0])
        if service is not None:
            with _serve_session(settings):
                try:
                    service.swap(bundle.version)
                except Exception:
                    with suppress(DeployError):
                        service.swap(current)
                    raise
        restore(store, bundle)
    return bundle


class Night:
    """The steps of one night. Each is safe to repeat, and returns what the ledger keeps of it."""

    def __init__(self, settings: Settings, store: Store, ledger: Ledger, service: LiveService | None) -> None:
        self.settings, self.store, self.ledger, self.service = settings, store, ledger, service
        self.candidate = Candidate(settings, store, ledger)
        self._steps: dict[str, Callable[[], dict[str, Any]]] = {
            "pairs": self.candidate.pairs,
            "vectors": self.candidate.vectors,
            "drift": self.candidate.drift,
            "codebooks": self.candidate.codebooks,
            "index": self.candidate.index,
            "bundle": self.candidate.bundle,
            "gates": self._gates,
            "publish": self._publish,
            "histories": self._histories,
            "swap": self._swap,
            "verify": self._verify,
        }

    def run(self) -> Artifact:
        """All steps that are not finished yet."""
        name, state = self.ledger.record.run_id, self.ledger.record.state
        if state == "done":
            print(f"refresh {name}: was finished before")
            return self.store.open("bundle")
        if state == "rolled_back":
            raise self._failed()
        if state == "rolling_back":
            self._roll_back()
        self.ledger.change(state="running", reasons=[], judged=None)
        with ray_session(self.settings.ray) if self._missing(BUILD) else nullcontext():
            self._do("pairs")
            if self.candidate.nothing_new():
                print(f"refresh {name}: the log has nothing new")
                self.ledger.change(state="unchanged", steps={})
                return self.store.open("bundle")
            for step in BUILD:
                self._do(step)
        self._do("gates")
        self._note_before()
        with _serve_session(self.settings) if self.service else nullcontext():
            try:
                for step in IN_USE:
                    self._do(step)
            except Exception as error:
                self.ledger.change(state="rolling_back", reasons=[str(error)])
                self._roll_back(error)
        self.ledger.change(state="done")
        bundle = self.store.open("bundle")
        print(f"refresh {name}: bundle {bundle.version} in use; report: {self.ledger.folder}/report.md")
        return bundle

    def _do(self, step: str) -> None:
        if self.ledger.finished(step):
            return
        name = self.ledger.record.run_id
        print(f"refresh {name}: [{STEPS.index(step) + 1}/{len(STEPS)}] {step}", flush=True)
        began = time.perf_counter()
        outcome = self._steps[step]()
        self.ledger.finish(step, outcome, time.perf_counter() - began)

    def _missing(self, steps: tuple[str, ...]) -> bool:
        return not all(self.ledger.finished(step) for step in steps)

    def _gates(self) -> dict[str, Any]:
        """Not recorded unless all pass: a rerun measures again, maybe against other limits."""
        candidate, in_use = (
            Bundle.load(artifact.path) for artifact in (self.candidate.made("bundle"), self.candidate.base("bundle"))
        )
        rejected = quarantined_share(self.candidate.made("pairs").manifest.metrics)
        measured = measure(candidate, in_use, self.candidate.probes(), self.settings.serve.overfetch or OVERFETCH["pq"], rejected)
        measured = replace(measured, index_recall=self.ledger.outcome("index").get("recall"))
        gates = judge(measured, self.settings.refresh, candidate.config.top_k)
        for gate in gates:
            print(f"    {'passed' if gate.passed else 'FAILED'}: {gate.name} {gate.value:.4g} ({gate.bound} {gate.limit:.4g})")
        outcome = {"measured": vars(measured), "gates": [vars(gate) for gate in gates]}
        refused = [gate.sentence for gate in gates if not gate.passed]
        if refused:
            self.ledger.change(state="refused", reasons=refused, judged=outcome)
            raise self._failed()
        return outcome

    def _note_before(self) -> None:
        """Remember what to go back to; whatever speaks against publishing at all is raised here, with nothing moved yet."""
        if self.ledger.finished("publish"):
            return
        current, base = self.store.current("bundle"), self.ledger.record.base["bundle"]
        if current not in (base, self.ledger.outcome("bundle")["version"]):
            what, fix = f"bundle in use at the end of night {self.ledger.record.run_id}", "start another refresh.run_id"
            raise NightFailed(explain(what, got=current, expected=f"{base}, which the night continues", fix=fix))
        if self.ledger.record.before is not None:
            return
        with _serve_session(self.settings) if self.service else nullcontext():
            served = self.service.version() if self.service else None
        self.ledger.change(before={**current_versions(self.store), "service": served})

    def _publish(self) -> dict[str, Any]:
        versions = self._candidates()
        move_pointers(self.store, versions)
        return versions

    def _histories(self) -> dict[str, Any]:
        """Behaviours of the log that the serving history store lacks: those newer than each user's newest."""
        config = self.settings.serve
        folder = config.history or self.settings.workdir / "history"
        if config.history_url is None and not (folder / "data.mdb").is_file():
            return {"skipped": "no history store on this machine; the service's own comes by POST /v1/events"}
        history = open_histories(config, folder)
        try:
            return vars(import_histories(history, self.candidate.made("pairs")))
        finally:
            history.close()

    def _swap(self) -> dict[str, Any]:
        if self.service is None:
            return {"skipped": "no refresh.endpoint"}
        return {"replicas": self.service.swap(self.candidate.made("bundle").version)}

    def _verify(self) -> dict[str, Any]:
        if self.service is None:
            return {"skipped": "no refresh.endpoint"}
        return self.service.verify(Bundle.load(self.candidate.made("bundle").path), self.candidate.probes())

    def _roll_back(self, cause: Exception | None = None) -> None:
        """Pointers, then the service, then NightFailed; unfinished, the next run goes on with it."""
        before = self.ledger.record.before
        assert before is not None, "pointers move only after this was recorded"
        move_back(self.store, self._candidates(), before)
        if self.service is not None and before["service"] is not None:
            try:
                with _serve_session(self.settings):
                    self.service.swap(before["service"])
            except Exception as error:
                self.ledger.change(reasons=[*self.ledger.record.reasons, f"swapping back failed: {error}"])
                fix = "run the same night again to swap it back"
                what = f"night {self.ledger.record.run_id}, on disk as before"
                raise NightFailed(
                    explain(what, got=str(error), expected=f"bundle {before['service']} served", fix=fix)
                ) from error
        self.ledger.change(state="rolled_back")
        raise self._failed() from cause

    def _failed(self) -> NightFailed:
        record = self.ledger.record
        again = "mend that and give another refresh.run_id"
        if record.state == "refused":
            again += ", or run this night again with other limits"
        return NightFailed(
            explain(
                f"night {record.run_id} {record.state.replace('_', ' ')}",
                got="; ".join(record.reasons),
                expected="a bundle that may be used",
                fix=f"bundle {record.base['bundle']} stays in use; {again} (see {self.ledger.folder}/report.md)",
            )
        )

    def _candidates(self) -> dict[str, str]:
        made = {kind: self.ledger.outcome(kind) for kind in POINTERS}
        return {kind: outcome["version"] for kind, outcome in made.items() if "version" in outcome}


def _service(settings: Settings) -> LiveService | None:
    config = settings.refresh
    if config.dashboard and not config.endpoint:
        fix = "set both, or neither to publish without a swap"
        raise ConfigError(explain("refresh.endpoint", got="nothing", expected="the service's URL", fix=fix))
    return LiveService(config.endpoint, config.dashboard, settings.serve.token_file) if config.endpoint else None


def _serve_session(settings: Settings) -> Any:
    """Without a dashboard the service is swapped through the Ray it runs on, which this process must be connected to."""
    return nullcontext() if settings.refresh.dashboard else ray_session(settings.ray)


def _base(store: Store) -> dict[str, str]:
    """The bundle in use and what it was made from."""
    bundle = store.open("bundle")
    return {"bundle": bundle.version, **{kind: ref.version for kind, ref in bundle.manifest.inputs.items()}}
