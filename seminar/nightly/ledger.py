"""One JSON file a night says what a refresh has done, so that a rerun does the rest; one lock keeps two nights apart.

A step is recorded after its work, by one atomic replace. Killed between the two, a rerun repeats that step: steps are idempotent.
"""

import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from seminar.artifacts import write_atomically
from seminar.config import Settings
from seminar.errors import ConfigError, SeminarError, explain

STEPS = ("pairs", "vectors", "drift", "codebooks", "index", "bundle", "gates", "publish", "histories", "swap", "verify")
State = Literal["running", "unchanged", "refused", "rolling_back", "rolled_back", "done"]
_DEPENDS_ON = ("data", "prepare", "embed", "codebooks", "index")
_LOCK = ".lock"


class NightFailed(SeminarError):
    """A night that did not come into use: another is at work, a gate refused it, or it was rolled back."""


class StepRecord(BaseModel):
    """A finished step: what came of it, how long its last attempt took, and when (UTC)."""

    model_config = ConfigDict(frozen=True)
    outcome: dict[str, Any]
    seconds: float
    finished: str


class Record(BaseModel):
    """The content of ledger.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    run_id: str
    began: str
    state: State = "running"
    settings: dict[str, Any]
    """What the night's artefacts depend on; a rerun must agree."""
    base: dict[str, str]
    """What the night continues: version of the bundle in use when it began, and of all that it was made from."""
    before: dict[str, str | None] | None = None
    """Just before the first pointer moved: the current version of each kind and, under `service`, the bundle that was served."""
    steps: dict[str, StepRecord] = {}
    judged: dict[str, Any] | None = None
    """What the gates saw when they last refused; a night that passed has it in its step."""
    reasons: list[str] = []
    """Why it was refused or rolled back."""


class Ledger:
    """A Record and the file it is kept in; every change is on disk before it returns."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def open(cls, folder: Path, settings: Settings, base: Callable[[], dict[str, str]]) -> "Ledger":
        """The ledger of the night that `folder` is named after, begun with `base()` if there is none.

        ConfigError if that night was begun with other settings.
        """
        recorded = {name: section for name, section in settings.model_dump(mode="json").items() if name in _DEPENDS_ON}
        # Where the log lies is no part of what it says; prepare takes its fingerprint.
        recorded["data"] = {key: value for key, value in recorded["data"].items() if key not in ("path", "images")}
        path = folder / "ledger.json"
        found = Record.model_validate_json(path.read_text()) if path.is_file() else None
        # A night that found nothing new has done nothing: it begins anew, on what is in use now.
        if found is not None and found.state != "unchanged":
            _require_same(found, recorded)
            return cls(folder, found)
        folder.mkdir(parents=True, exist_ok=True)
        ledger = cls(folder, Record(run_id=folder.name, began=_now(), settings=recorded, base=base()))
        ledger.change()
        return ledger

    def finished(self, step: str) -> bool:
        return step in self.record.steps

    def outcome(self, step: str) -> dict[str, Any]:
        """What a finished step recorded."""
        return self.record.steps[step].outcome

    def finish(self, step: str, outcome: dict[str, Any], seconds: float) -> None:
        """Record a step; from here on no rerun repeats it."""
        done = StepRecord(outcome=outcome, seconds=round(seconds, 3), finished=_now())
        self.change(steps={**self.record.steps, step: done})

    def change(self, **fields: Any) -> None:
        """Replace fields of the record."""
        self.record = self.record.model_copy(update=fields)
        write_atomically(self.folder / "ledger.json", self.record.model_dump_json(indent=2))


def name_of_night(settings: Settings) -> str:
    """refresh.run_id, else the date of data.until, else today (UTC); it names the night's folder."""
    moment = settings.data.until or datetime.now(UTC)
    name = settings.refresh.run_id or f"{moment:%Y-%m-%d}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fix = "name it like 2026-03-01"
        raise ConfigError(explain("refresh.run_id", got=repr(name), expected="letters, digits, '.', '_' and '-'", fix=fix))
    return name


@contextmanager
def night_lock(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder` for `what`; NightFailed, naming its holder, if another process has it.

    The kernel drops a flock when its holder ends, however it ends, so there is no stale lock to detect. Across machines it holds
    where the file system passes flock on (local, NFSv4, EFS, CephFS); the file itself stays and only tells who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            fix = "wait for it to end; the lock goes with its process"
            raise NightFailed(
                explain(f"refresh in {folder.parent}", got=handle.read() or "another one", expected="no other at work", fix=fix)
            ) from None
        handle.truncate(0)
        handle.write(f"{what} by process {os.getpid()} on {socket.gethostname()} since {_now()}")
        handle.flush()
        yield


def _require_same(record: Record, settings: dict[str, Any]) -> None:
    for section, values in settings.items():
        for key, value in values.items():
            was = record.settings.get(section, {}).get(key)
            if value != was:
                fix = "use those settings, or give this night another refresh.run_id"
                what = f"{section}.{key} of night {record.run_id}"
                raise ConfigError(explain(what, got=value, expected=f"{was}, as it was begun with", fix=fix))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
