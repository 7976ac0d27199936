"""How far a stage is: a bar in a terminal, one plain line every few seconds in a log.

prepare: events  412,000/1,469,307 rows (28 %)  205,120 rows/s  ETA 5 s
"""

import sys
import time
from collections.abc import Callable
from io import TextIOBase
from types import TracebackType
from typing import IO, TextIO, cast

from rich import progress as bars
from rich.console import Console

INTERVAL_S = 3.0


class Progress:
    """Context manager: `with Progress("prepare: shards", total=8, unit="shards") as progress: progress.advance(1)`.

    total: None when unknown (no ETA then). done: amount finished by an earlier run, left out of the rate. Prints to `stream`
    (standard error unless given); the last line says how much was done, how fast and in how long, also after an error.
    """

    def __init__(
        self,
        stage: str,
        total: int | None = None,
        unit: str = "rows",
        *,
        done: int = 0,
        stream: TextIO | TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done, self._resumed = done, done
        self._stream = stream or sys.stderr
        self._clock = clock
        self._bar: bars.Progress | None = None
        self._note = ""

    def __enter__(self) -> "Progress":
        self._started = self._printed = self._clock()
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(self.stage, total=self.total, completed=self.done, unit=self.unit, speed="", note="")
            self._bar.start()
        return self

    def advance(self, amount: int, note: str = "") -> None:
        """Count `amount` more units; `note` is shown behind the figures, e.g. a loss."""
        self.done += amount
        self._note = note or self._note
        if self._bar:
            speed = f"{_number(self.rate)} {self.unit}/s"
            self._bar.update(self._task, completed=self.done, speed=speed, note=self._note)
        elif self._clock() - self._printed >= INTERVAL_S:
            self._printed = self._clock()
            self._line(self._remaining())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        took = f"{'stopped after' if kind else 'done in'} {_duration(self.elapsed_s)}"
        self._line(took)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the stage began in this process."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Units a second of this run."""
        return (self.done - self._resumed) / max(self.elapsed_s, 1e-6)

    def _remaining(self) -> str:
        if self.total is None or not self.rate:
            return ""
        return f"ETA {_duration(max(self.total - self.done, 0) / self.rate)}"

    def _line(self, ending: str) -> None:
        amount = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        parts = [self.stage, f"{amount} {self.unit}{share}", f"{_number(self.rate)} {self.unit}/s", ending, self._note]
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)


def _bar(stream: TextIO | TextIOBase) -> bars.Progress:
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[unit]}  {task.fields[speed]}  ETA"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}"),
    )
    return bars.Progress(*columns, console=Console(file=cast("IO[str]", stream)), transient=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
