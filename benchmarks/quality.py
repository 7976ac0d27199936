"""Does the model clear the floors, and does pretraining help? The whole of Complete Journey, several seeds, intervals.

    python -m benchmarks.quality [--config configs/complete_journey.toml] [--seeds 0 1 2]

For each seed: pretrain, fine-tune from it, fine-tune from scratch with the same settings and data order, evaluate both on the
same candidates. Intervals are 95 % bootstrap over users and seeds; gains are paired by user. Finished runs are found again.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Goal, publish, run
from seminar.artifacts import Artifact, Store
from seminar.config import Settings, load_settings
from seminar.evaluate.evaluation import SAMPLED, Rows
from seminar.evaluate.protocol import FLOORS
from seminar.evaluate.report import headline, table
from seminar.evaluate.summary import summarise
from workflows import embed, evaluate, finetune, prepare, pretrain
from workflows.runtime import absolute, ray_session

PRETRAINED, SCRATCH = "pretrained", "from scratch"
FLOOR = {"HIT@10": 0.668, "NDCG@10": 0.491, "AUC": 0.861}
"""In-history, then popularity, as measured on all rows of the data set: same category, outside the held-out basket."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    settings = absolute(load_settings(arguments.config, {"evaluate": {"full_ranking_users": 0}}))
    store = Store(settings.workdir)
    with ray_session(settings.ray):
        prepare.run(settings, store)
        embed.run(settings, store)
        runs = [run_seed(settings, store, seed) for seed in arguments.seeds]
    lines = summarise(runs, np.random.default_rng(0), references=(SCRATCH, *FLOORS))
    print(*table(headline(lines), ("HIT@1", "HIT@10", "NDCG@10", "MRR", "AUC")), sep="\n")
    publish("quality", list(goals(lines, len(runs))))


def run_seed(settings: Settings, store: Store, seed: int) -> Rows:
    """Rows of both models and the floors under one seed."""
    pretrain.run(seeded(settings, seed), store)
    with_psu = rows_of(settings, store, seed, pretrained=True)
    without = rows_of(settings, store, seed, pretrained=False)
    return with_psu.renamed({"model": PRETRAINED}, keep=FLOORS).joined(without.renamed({"model": SCRATCH}))


def rows_of(settings: Settings, store: Store, seed: int, *, pretrained: bool) -> Rows:
    chosen = seeded(settings, seed, pretrained=pretrained)
    finetune.run(chosen, store)
    report: Artifact = evaluate.run(chosen, store)
    return Rows.read(report.path)


def seeded(settings: Settings, seed: int, **finetuning: Any) -> Settings:
    return settings.model_copy(
        update={
            "pretrain": settings.pretrain.model_copy(update={"seed": seed}),
            "finetune": settings.finetune.model_copy(update={"seed": seed, **finetuning}),
        }
    )


def goals(lines: list[dict[str, Any]], seeds: int) -> Any:
    """Absolute figures against the published floor, lower interval ends, and gains over floors and over no pretraining."""
    shown = {line["scorer"]: line for line in headline(lines)}
    model = shown[PRETRAINED]
    where = f"same category, last basket, {model['users']} users, {seeds} seeds, query origin {model['query_origin']}"
    for name, floor in FLOOR.items():
        figure = model["metrics"][name]
        yield Goal(f"{name}, {where}", figure["value"], "", floor)
        yield Goal(f"  lower end of its 95 % interval [{figure['low']:.4f}, {figure['high']:.4f}]", figure["low"], "", floor)
        for reference in (*FLOORS, SCRATCH):
            gain = model["gains"][reference][name]
            interval = f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
            yield Goal(f"  gain over {reference}, lower end of {interval}", gain["low"], "", 0.0)
    assert model["protocol"] == SAMPLED


if __name__ == "__main__":
    run(main)
