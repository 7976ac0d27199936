"""The engine keeps about half of its published ratios on any machine with its fast path: who breaks a kernel hears of it.

In a process of its own: the import hook that checks shapes in tests costs more than the calls that are timed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seminar.kernels import simd

SHARE = 0.4
"""Of a goal, that other work on the machine must leave."""
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def goals() -> list[dict[str, Any]]:
    pytest.importorskip("faiss")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gsu_goals", "clustered"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [goal for goal in json.loads(done.stdout.splitlines()[-1]) if goal["target"] is not None]


@pytest.mark.skipif("avx512" not in simd.available(), reason="goals are those of processors with AVX-512 VNNI and VBMI")
def test_about_half_of_every_ratio_holds(goals: list[dict[str, Any]]) -> None:
    ratios = [goal for goal in goals if goal["unit"] == "x"]
    assert len(ratios) >= 9
    missed = [
        (goal["goal"], goal["measured"])
        for goal in ratios
        if (goal["measured"] < goal["target"] * SHARE if goal["at_least"] else goal["measured"] > goal["target"] / SHARE)
    ]
    assert not missed


def test_recall_and_bytes_hold_in_full(goals: list[dict[str, Any]]) -> None:
    exact = [goal for goal in goals if goal["unit"] not in ("x", "ms")]
    assert len(exact) >= 4
    for goal in exact:
        assert goal["measured"] >= goal["target"] if goal["at_least"] else goal["measured"] <= goal["target"], goal
