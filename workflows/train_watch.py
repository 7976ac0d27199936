"""How far a training run is, shown by the driver from a small file in the draft: workers' own output stays in Ray's logs."""

import json
import threading
import time
from pathlib import Path
from typing import Any

from seminar.artifacts import write_atomically
from seminar.progress import Progress

PROGRESS = "_progress.json"


def note_progress(draft: Path, row: dict[str, float], *, last: bool) -> None:
    """Called by rank 0 after every step; writes at most once a second, and the last step."""
    path = draft / PROGRESS
    if last or not path.is_file() or time.time() - path.stat().st_mtime > 1:
        write_atomically(path, json.dumps(row))


class Watch:
    """Context manager around a run. The clock starts at the first step, so the rate is that of training, not of starting Ray."""

    def __init__(self, draft: Path, stage: str, steps: int) -> None:
        self._path, self._stage, self._steps = draft / PROGRESS, stage, steps
        self._progress: Progress | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._path.unlink(missing_ok=True)
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        if self._progress:
            self._progress.__exit__(*error)

    def _poll(self) -> None:
        while not self._stop.wait(0.5):
            self._show()
        self._show()

    def _show(self) -> None:
        if not self._path.is_file():
            return
        row = json.loads(self._path.read_text())
        if self._progress is None:
            self._progress = Progress(self._stage, self._steps, "steps", done=row["step"]).__enter__()
        if row["step"] == self._progress.done:
            return
        note = f"loss {row['loss']:.4f}  {row['pairs_per_s']:,.0f} pairs/s"
        self._progress.advance(row["step"] - self._progress.done, note)
