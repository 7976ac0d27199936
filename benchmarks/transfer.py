"""Does a retriever of one shop help another? Trained on one, MMSRec starts the training on a second with other users and items.

    python -m benchmarks.transfer [--config configs/retriever.toml] [--users 200 600] [--seeds 0 1 2]

The shops are made of Complete Journey: two thirds of the households and the department GROCERY; the other households and all
other departments. They share the text encoder and some brands and makers, which are attribute tokens. On the second shop, of
which a few households are taken, four starts are compared after the same steps: from scratch, from its own pretraining, from the
retriever of the first shop, and from that without its attribute tokens, as if no brand were known. Figures are Recall@50 of the
whole catalogue on test, means over seeds; intervals are over users and seeds, differences are paired.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from benchmarks.common import Goal, publish, run
from benchmarks.retrievers import SEEN, UNSEEN, changed, ranked, trained
from seminar.artifacts import Artifact, Store
from seminar.config import Settings, load_settings
from seminar.evaluate.evaluation import FULL, Rows
from seminar.evaluate.summary import ALL, summarise
from seminar.hashing import stable_hash
from seminar.schema import EVENTS, ITEMS, NONE, ORIGINS, QUERIES
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards
from workflows import embed, prepare
from workflows.runtime import absolute, ray_session

DEPARTMENT = "department=GROCERY"
SCRATCH, OWN, OTHER = "from scratch", "own pretraining", "the other shop's retriever"
UNBRANDED = "the other shop's retriever without its attribute tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/retriever.toml"))
    parser.add_argument("--users", type=int, nargs="+", default=[200, 600])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--source-steps", type=int, default=600, help="of the first shop's retriever")
    parser.add_argument("--steps", type=int, default=200, help="on the second shop, after each start")
    own = parser.parse_args()
    settings = absolute(load_settings(own.config))
    with ray_session(settings.ray):
        pairs = prepare.run(settings, Store(settings.workdir))
        folder = settings.workdir.parent / "transfer"
        first, second = (write_shop(pairs, folder / name, grocery) for name, grocery in (("grocery", True), ("rest", False)))
        source_settings, source = shop(settings, first, {"steps": own.source_steps})
        origin = trained(source_settings, source)
        starts = {OTHER: origin, UNBRANDED: without_tokens(source, origin)}
        found: list[Goal] = []
        for users in own.users:
            runs = [target_rows(settings, second, users, own.steps, seed, starts) for seed in own.seeds]
            found += goals(runs, users, len(own.seeds), f"{own.source_steps} and {own.steps} steps")
    publish("transfer", found)


def write_shop(pairs: Artifact, folder: Path, grocery: bool) -> Path:
    """Canonical tables of one shop: its households' purchases in its departments."""
    if (folder / "items.parquet").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    items, queries = (pq.read_table(pairs.file(f"{name}.parquet")) for name in ("items", "queries"))
    inside_I = np.array([(DEPARTMENT in (tokens or [])) == grocery for tokens in items["attributes"].to_pylist()])
    histories = read_shards(shard_paths(pairs))
    ours_N = (stable_hash(histories.user_id) % np.uint64(3) != 0) == grocery
    user_E = np.repeat(np.arange(len(histories)), histories.lengths)
    kept = np.flatnonzero(ours_N[user_E] & inside_I[histories.item])
    query, item_id = histories.query[kept], items["item_id"].take(histories.item[kept])
    named = pa.array(np.where(query == NONE, 0, query), mask=query == NONE)
    columns = {
        "user_id": pa.array(histories.user_id).take(user_E[kept]),
        "item_id": item_id,
        "time_ms": histories.time_ms[kept],
        "query_id": queries["query_id"].take(named),
        "query_origin": pa.array(ORIGINS).take(histories.origin[kept]),
        "request_id": pa.array(histories.request[kept]).cast(pa.string()),
        "label": np.ones(len(kept), np.int8),
    }
    events = pa.table({name: columns[name] for name in EVENTS.names}).cast(EVENTS)
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(queries.select(QUERIES.names).cast(QUERIES), folder / "queries.parquet")
    # Last: it says that the folder is whole.
    pq.write_table(items.filter(pa.array(inside_I)).select(ITEMS.names).cast(ITEMS), folder / "items.parquet")
    return folder


def shop(settings: Settings, folder: Path, train: Mapping[str, Any], users: int | None = None) -> tuple[Settings, Store]:
    """Settings and store of a shop, its sequences and vectors made."""
    data = {"source": "tables", "path": folder, "query_setting": "as_is", "max_users": users, "images": settings.data.images}
    workdir = folder.with_name(f"{folder.name}-{users or 'all'}")
    of_shop = changed(settings, {"data": data, "workdir": workdir, "train_retriever": dict(train)})
    store = Store(workdir)
    prepare.run(of_shop, store)
    embed.run(of_shop, store)
    return of_shop, store


def without_tokens(store: Store, origin: Artifact) -> Artifact:
    """The same retriever but for its attribute tokens: who starts from it draws them anew."""
    name = "retriever.safetensors"
    draft = store.draft("retriever", {"retriever": origin}, {**origin.manifest.config, "without": "attribute tokens"})
    weights = load_file(origin.file(name))
    save_file({key: value for key, value in weights.items() if not key.startswith("channels.tokens.")}, draft.path / name)
    return store.publish(draft, current=False)


def target_rows(settings: Settings, folder: Path, users: int, steps: int, seed: int, origins: Mapping[str, Artifact]) -> Rows:
    """All starts under one seed, on the same behaviours."""
    seeds = {"train_retriever": {"seed": seed}, "pretrain_retriever": {"seed": seed}}
    of_shop, store = shop(settings, folder, {"steps": steps}, users)
    starts: dict[str, dict[str, Any]] = {SCRATCH: {"pretrained": False}, OWN: {"pretrained": True}}
    starts |= {name: {"pretrained": False, "start": origin.path} for name, origin in origins.items()}
    towers = {name: trained(changed(of_shop, seeds, {"train_retriever": start}), store) for name, start in starts.items()}
    return ranked(of_shop, store, towers)


def goals(runs: Sequence[Rows], users: int, seeds: int, steps: str) -> Iterator[Goal]:
    lines: Sequence[Mapping[str, Any]] = summarise(runs, np.random.default_rng(7), (SCRATCH,), sliced=FULL)
    of_full = [line for line in lines if line["protocol"] == FULL]
    main = [line for line in of_full if line["query_origin"] == of_full[0]["query_origin"]]
    for bin_, label in (((ALL, ALL), "all items"), (SEEN, "seen items"), (UNSEEN, "unseen items")):
        of_bin = {line["scorer"]: line for line in main if (line["slice"], line["bin"]) == bin_}
        for name in (SCRATCH, OWN, OTHER, UNBRANDED):
            figure = of_bin[name]["metrics"]["HIT@50"]
            yield Goal(f"{users} households, {label}, {seeds} seeds, {steps}: Recall@50 {name}", figure["value"], "")
            if name == SCRATCH:
                continue
            gain = of_bin[name]["gains"][SCRATCH]["HIT@50"]
            yield Goal(f"  gain over {SCRATCH}, 95 % interval [{gain['low']:+.4f}, {gain['high']:+.4f}]", gain["value"], "")
            yield Goal("  lower end of that interval", gain["low"], "", 0.0 if name == OTHER else None)


if __name__ == "__main__":
    run(main)
