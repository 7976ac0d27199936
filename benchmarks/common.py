"""What every benchmark shares: one row a claim, measured, with all that is needed to measure it again."""

import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from seminar.errors import SeminarError
from seminar.provenance import commit, machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Goal:
    """One figure and what it was to be; `holds` is None where there is no target. `at_least` False: smaller is better."""

    goal: str
    measured: float
    unit: str
    target: float | None = None
    at_least: bool = True

    @property
    def holds(self) -> bool | None:
        if self.target is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def publish(name: str, goals: Sequence[Goal]) -> Path:
    """Print a table and write benchmarks/results/<name>.json."""
    context = {
        "command": " ".join([Path(sys.executable).name, "-m", *_module(), *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
    }
    width = max(len(goal.goal) for goal in goals)
    for goal in goals:
        target = "" if goal.target is None else f"  target {'>=' if goal.at_least else '<='} {goal.target:g}"
        verdict = {None: "", True: "  holds", False: "  FALLS SHORT"}[goal.holds]
        print(f"{goal.goal:<{width}}  {goal.measured:>12,.4g} {goal.unit}{target}{verdict}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    rows = [{k: v for k, v in asdict(goal).items() if k != "at_least"} | {"holds": goal.holds, **context} for goal in goals]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"-> {path}")
    return path


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; an error of input or settings is one sentence and exit code 2."""
    try:
        main()
    except SeminarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def peak_memory_mib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _module() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name] if spec else [sys.argv[0]]
