"""Does content find what IDs find, and new items too? MMSRec beside ID towers, neighbours and floors on the whole catalogue.

    python -m benchmarks.retrievers [--config configs/retriever.toml] [--seeds 0 1 2] [--trials 3]

Every tower has the same steps, windows, loss and random search: a trial is a third of the steps, judged by Recall@50 on
validation. SASRec, whose steps cost a third, is also given three times as many. Figures are means over seeds on all held-out
behaviours of the test split; intervals are over users and seeds. What is current in the config's folder stays so.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Goal, publish, run
from seminar.artifacts import Artifact, Store
from seminar.candidates.full_ranking import NEW_ONLY
from seminar.candidates.report import NAMES
from seminar.config import Settings, load_settings, merged, settings_of
from seminar.evaluate.evaluation import FULL, Rows
from seminar.evaluate.summary import ALL, summarise
from workflows import embed, evaluate_retriever, prepare, pretrain_retriever, train_retriever
from workflows.runtime import absolute, ray_session

SCRATCH = "MMSRec without pretraining"
LONGER = f"{NAMES['sasrec']}, three times the steps"
TOWERS = {
    NAMES["mmsrec"]: {"retriever": {"kind": "mmsrec"}, "train_retriever": {"pretrained": True}},
    SCRATCH: {"retriever": {"kind": "mmsrec"}, "train_retriever": {"pretrained": False}},
    NAMES["sasrec"]: {"retriever": {"kind": "sasrec"}},
    NAMES["two_tower"]: {"retriever": {"kind": "two_tower"}},
    LONGER: {"retriever": {"kind": "sasrec"}},
}
SAME_RATES = {SCRATCH: NAMES["mmsrec"], LONGER: NAMES["sasrec"]}
SEARCH = {"learning_rate": (2e-3, 4e-3, 8e-3), "sparse_learning_rate": (0.05, 0.1, 0.3)}
UNSEEN, SEEN = ("unseen", "unseen in training"), ("unseen", "seen in training")
Line = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/retriever.toml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--name", default="retrievers", help="file of the rows under benchmarks/results")
    own = parser.parse_args()
    settings = absolute(load_settings(own.config))
    store = Store(settings.workdir)
    with ray_session(settings.ray):
        prepare.run(settings, store)
        embed.run(settings, store)
        current = {kind: store.current(kind) for kind in ("towers", "retriever", "sasrec", "two_tower") if store.versions(kind)}
        rates = {n: search(settings, store, change, own.trials) for n, change in TOWERS.items() if n not in SAME_RATES}
        rates |= {name: rates[other] for name, other in SAME_RATES.items()}
        runs = [test_rows(settings, store, rates, seed) for seed in own.seeds]
    for kind, version in current.items():
        store.set_current(kind, version)
    lines = summarise(
        runs,
        np.random.default_rng(settings.evaluate.seed),
        [name for name in scorers(runs[0]) if name != NAMES["mmsrec"]],
        sliced=FULL,
    )
    for name, rate in rates.items():
        print(f"{name}: {rate}")
    publish(own.name, list(goals(lines, len(own.seeds))))


def changed(settings: Settings, *changes: Mapping[str, Any]) -> Settings:
    values = settings.model_dump()
    for change in changes:
        values = merged(values, dict(change))
    return settings_of(values)


def search(settings: Settings, store: Store, change: Mapping[str, Any], trials: int) -> dict[str, float]:
    """The best of a few draws of both rates, the same draws for every tower; on seed 0, and on validation."""
    rng = np.random.default_rng(0)
    grid = [dict(zip(SEARCH, pair, strict=True)) for pair in np.array(np.meshgrid(*SEARCH.values())).T.reshape(-1, 2).tolist()]
    drawn = [grid[i] for i in rng.permutation(len(grid))[:trials]]
    if not drawn:
        return {name: getattr(settings.train_retriever, name) for name in SEARCH}
    found = []
    for rate in drawn:
        steps = {"train_retriever": {**rate, "steps": settings.train_retriever.steps // 3}}
        trial = changed(settings, change, steps, {"evaluate": {"split": "validation"}})
        tower = trained(trial, store)
        rows = ranked(trial, store, {"trial": tower})
        found.append(recall_at_50(rows, "trial"))
        print(f"search {tower.manifest.kind} {rate}: Recall@50 on validation {found[-1]:.4f}", flush=True)
    return drawn[int(np.argmax(found))]


def trained(settings: Settings, store: Store) -> Artifact:
    if settings.retriever.kind == "mmsrec" and settings.train_retriever.pretrained:
        pretrain_retriever.run(settings, store)
    return train_retriever.run(settings, store)


def test_rows(settings: Settings, store: Store, rates: Mapping[str, Mapping[str, float]], seed: int) -> Rows:
    """All towers under one seed, on the same behaviours."""
    seeds = {"train_retriever": {"seed": seed}, "pretrain_retriever": {"seed": seed}}
    towers = {}
    for name, change in TOWERS.items():
        steps = settings.train_retriever.steps * (3 if name == LONGER else 1)
        train = {"train_retriever": {**rates[name], "steps": steps}}
        towers[name] = trained(changed(settings, change, seeds, train), store)
        print(f"seed {seed}: {name} {towers[name].path}", flush=True)
    return ranked(settings, store, towers)


def ranked(settings: Settings, store: Store, towers: Mapping[str, Artifact]) -> Rows:
    """Rows of these towers; found again where they were ranked before."""
    inputs = {kind: store.open(kind) for kind in ("pairs", "vectors")}
    # Item-kNN has no seed: `seminar evaluate-retriever` has it.
    settings = changed(settings, {"evaluate_retriever": {"ranked_users": 0, "neighbours": 0}})
    config = {"protocol": settings.evaluate.protocol, "names": list(towers), **settings.evaluate_retriever.model_dump()}
    version = store.version_of("retriever_rows", {**inputs, **towers}, config)
    return evaluate_retriever.rank_all(settings, store, inputs, towers, store.root / "retriever_rows" / version)


def scorers(rows: Rows) -> list[str]:
    return rows.ranked["scorer"].unique().to_pylist()


def recall_at_50(rows: Rows, scorer: str) -> float:
    lines = summarise([rows], np.random.default_rng(0), replicates=2, sliced=FULL)
    return float(_line(lines, FULL, (ALL, ALL), scorer)["metrics"]["HIT@50"]["value"])


def goals(lines: Sequence[Line], seeds: int) -> Iterator[Goal]:
    """Content against IDs on seen and on new items, what pretraining gives, and every tower's figures."""
    content = NAMES["mmsrec"]
    ids = max((NAMES["sasrec"], LONGER), key=lambda name: _line(lines, FULL, SEEN, name)["metrics"]["HIT@50"]["value"])
    note = f"whole catalogue, {seeds} seeds"
    for bin_, protocol, label in (
        (UNSEEN, FULL, "items unseen in training"),
        ((ALL, ALL), NEW_ONLY, "items unseen in training, among such items"),
    ):
        ours, theirs = (_line(lines, protocol, bin_, name)["metrics"]["HIT@50"]["value"] for name in (content, ids))
        yield Goal(f"Recall@50 of {content} less twice that of {ids} ({theirs:.4f}), {label}, {note}", ours - 2 * theirs, "", 0.0)
    seen = _line(lines, FULL, SEEN, content)
    base = _line(lines, FULL, SEEN, ids)["metrics"]["HIT@50"]["value"]
    yield Goal(
        f"Recall@50 of {content} by that of {ids}, seen items, {note}", seen["metrics"]["HIT@50"]["value"] / base, "x", 0.95
    )
    for bin_, label in (((ALL, ALL), "all"), (SEEN, "seen items"), (UNSEEN, "unseen items")):
        gain = _line(lines, FULL, bin_, content)["gains"][SCRATCH]["HIT@50"]
        yield Goal(f"Recall@50 gained by pretraining, {label}", gain["value"], "")
        yield Goal(f"  lower end of its 95 % interval over users and seeds, at most {gain['high']:+.4f}", gain["low"], "", 0.0)
    for protocol, bin_, label in (
        (FULL, (ALL, ALL), "all"),
        (FULL, SEEN, "seen items"),
        (FULL, UNSEEN, "unseen items"),
        (NEW_ONLY, (ALL, ALL), "unseen items among themselves"),
    ):
        for line in _of(lines, protocol, bin_):
            for metric, name in (
                ("HIT@10", "Recall@10"),
                ("HIT@50", "Recall@50"),
                ("NDCG@10", "NDCG@10"),
                ("NDCG@50", "NDCG@50"),
            ):
                figure = line["metrics"][metric]
                yield Goal(f"{name}, {label}: {line['scorer']} [{figure['low']:.4f}, {figure['high']:.4f}]", figure["value"], "")


def _of(lines: Sequence[Line], protocol: str, bin_: tuple[str, str]) -> list[Line]:
    """The lines of the whole setting: the first query origin of each protocol."""
    of_protocol = [line for line in lines if line["protocol"] == protocol]
    first = of_protocol[0]["query_origin"]
    return [line for line in of_protocol if line["query_origin"] == first and (line["slice"], line["bin"]) == bin_]


def _line(lines: Sequence[Line], protocol: str, bin_: tuple[str, str], scorer: str) -> Line:
    return next(line for line in _of(lines, protocol, bin_) if line["scorer"] == scorer)


if __name__ == "__main__":
    run(main)
