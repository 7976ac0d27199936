"""The service under load, beside Serve's trivial endpoint and beside what a user would write first. Also `seminar bench serve`.

    python -m benchmarks.serve_load [--quick] [--only NAMES] [--config FILE --workdir DIR] [--port 8123]

Serves the bundle in use of a workdir to a load generator on this machine: /v1/score, 100 targets, every user as often as the
others, and planted users with 10,240 and 102,400 behaviours. One process tree a combination of ingress (HAProxy with throughput
flags, or Serve's proxy), topology and replicas; within one, all services take turns. Quick: two combinations, under four minutes
on an idle machine; else all eight, about half an hour. Writes benchmarks/results/serve.json and docs/serve_*.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import publish, run
from benchmarks.serve_phase import Phase
from benchmarks.serve_report import draw, goals, scaling_goals
from benchmarks.serve_world import World
from seminar.config import Settings, load_settings
from seminar.errors import ConfigError, explain
from serve.run import REPOSITORY

MAX_PHASE_S = 900
QUICK = ("haproxy-fused-1", "haproxy-fused-2")
SCALING = "scaling"
"""Replicas that come and go with the load (`benchmarks/serve_scaling.py`)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="what to run, e.g. haproxy-fused-1,proxy-split-2,scaling")
    own = parser.parse_args()
    settings: Settings = load_settings(own.config)
    workdir = (own.workdir or settings.workdir).resolve()
    with tempfile.TemporaryDirectory(prefix="seminar-bench-", dir="/tmp") as state:
        World.open(workdir).fill(Path(state) / "lmdb")
        named = {name(phase): phase for phase in phases(str(workdir), state, own.port, quick=own.quick)}
        wanted = own.only.split(",") if own.only else [*QUICK] if own.quick else [*named, SCALING]
        if not set(wanted) <= {*named, SCALING}:
            raise ConfigError(explain("--only", got=own.only, expected=", ".join([*named, SCALING]), fix="name some of these"))
        results = [measured(named[one], Path(state)) for one in wanted if one in named]
        scaled = [measured(named[QUICK[0]], Path(state), "serve_scaling")] if SCALING in wanted else []
    publish("serve", [*goals(results), *(goal for result in scaled for goal in scaling_goals(result))])
    draw(results)


def phases(workdir: str, state: str, port: int, *, quick: bool) -> Iterator[Phase]:
    """What is started, one after another. Open loop is measured in the default configuration alone, and the rivals, which take
    both cores, beside two replicas of it, which do."""
    first = Phase(
        workdir=workdir,
        history=state,
        ingress="haproxy",
        topology="fused",
        replicas=1,
        port=port,
        seconds=1.5 if quick else 3.0,
        rounds=2 if quick else 3,
        warm_users=300 if quick else 2000,
        cold_users=100,
        rivals=False,
        open_loop=True,
    )
    yield first
    other = replace(first, open_loop=False)
    for ingress in ("haproxy", "proxy"):
        for topology in ("fused", "split"):
            for replicas in (1, 2):
                rivals = (ingress, topology, replicas) == ("haproxy", "fused", 2)
                phase = replace(other, ingress=ingress, topology=topology, replicas=replicas, rivals=rivals)
                if name(phase) != name(first):
                    yield phase


def name(phase: Phase) -> str:
    return f"{phase.ingress}-{phase.topology}-{phase.replicas}"


def measured(phase: Phase, folder: Path, script: str = "serve_phase") -> dict[str, Any]:
    """The result of a phase, run in a process tree of its own that ends within MAX_PHASE_S."""
    path = folder / f"{script}-{name(phase)}.json"
    path.write_text(json.dumps(asdict(phase)))
    # Replicas get the priority of the load generator: Ray's own default for workers is lower.
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", f"benchmarks.{script}", str(path)]
    print(f"{script} {name(phase)} ...", flush=True)
    subprocess.run(command, env=environment, cwd=REPOSITORY, check=True, timeout=MAX_PHASE_S)
    return json.loads(path.with_suffix(".result.json").read_text())


if __name__ == "__main__":
    run(main)
