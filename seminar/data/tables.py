"""`seminar check DIR`: what is right and wrong with a dataset folder in the canonical layout of `table_source.py`."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seminar.config import DataConfig
from seminar.data.quarantine import Loaded, count_reasons, empty_quarantine
from seminar.data.table_source import TableSource
from seminar.errors import DataError, explain

__all__ = ["CheckReport", "TableSource", "check_folder"]


@dataclass
class CheckReport:
    """What `seminar check DIR` found. quarantine: every rejected row."""

    folder: Path
    rows: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    facts: dict[str, int | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    quarantine: pa.Table = field(default_factory=empty_quarantine)

    @property
    def clean(self) -> bool:
        """No row was rejected."""
        return not self.quarantine.num_rows

    def write_quarantine(self, path: Path) -> None:
        """All rejected rows as one Parquet file, in a folder that exists."""
        pq.write_table(self.quarantine, path)

    def require_behaviours(self) -> None:
        """Raise DataError if nothing could be made of these tables: no good event, or none that was taken."""
        events, what = self.rows["events"], f"{self.folder}: table 'events'"
        if not events:
            got = f"no good row and {self.rejected['events']:,} quarantined ones"
            raise DataError(explain(what, got=got, expected="at least one good row", fix="mend what the report counts"))
        if not self.facts["behaviours (label 1)"]:
            got = f"{events:,} good rows, all with label 0"
            raise DataError(explain(what, got=got, expected="at least one behaviour", fix="set label 1 where an item was taken"))

    def render(self) -> str:
        """The report as text for a terminal."""
        lines = [f"{self.folder}", "", f"{'table':<10}{'good rows':>14}{'quarantined':>14}"]
        lines += [f"{name:<10}{rows:>14,}{self.rejected[name]:>14,}" for name, rows in self.rows.items()]
        for name, reasons in self.reasons.items():
            lines += [f"  {name}: {reason}: {count:,}" for reason, count in reasons.items()]
        width = max((len(fact) for fact in self.facts), default=0) + 2
        values = [(fact, f"{value:,}" if isinstance(value, int) else value) for fact, value in self.facts.items()]
        lines += ["", *(f"{fact:<{width}}{value}" for fact, value in values)]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)


def check_folder(path: Path | str) -> CheckReport:
    """Read every table of a dataset folder part by part; memory holds one part and the ids of all users, items and queries.

    Raises DataError, one sentence, if a table cannot be used at all.
    """
    source = TableSource(DataConfig(source="tables", path=Path(path)))
    report = CheckReport(source.folder, notes=list(source.notes))
    catalogues = {name: getattr(source, name)() for name in ("items", "queries", "users")}
    known = {name: loaded.table[loaded.table.schema.names[0]] for name, loaded in catalogues.items()}
    scan = _EventScan({name: pc.unique(ids) for name, ids in known.items()})
    quarantines = [scan.add(source.events(part)) for part in source.parts()]
    for name, rows, rejected in [
        ("events", scan.rows, quarantines),
        *((name, loaded.table.num_rows, [loaded.quarantine]) for name, loaded in catalogues.items()),
    ]:
        table = pa.concat_tables(rejected) if rejected else report.quarantine
        report.rows[name], report.rejected[name], report.reasons[name] = rows, table.num_rows, count_reasons(table)
        report.quarantine = pa.concat_tables([report.quarantine, table])
    report.facts = scan.facts()
    if len(quarantines) > 1:
        report.notes.append("rows that repeat in another events file or row group are not counted here; prepare drops them")
    return report


class _EventScan:
    """Totals over all event parts."""

    def __init__(self, known: dict[str, pa.Array]) -> None:
        self._known = known
        self.rows = 0
        self._counts: Counter[str] = Counter()
        self._ids = {key: pa.array([], pa.string()) for key in ("user_id", "item_id", "query_id")}
        self._times: list[int] = []

    def add(self, loaded: Loaded) -> pa.Table:
        events = loaded.table
        self.rows += events.num_rows
        self._counts["behaviours (label 1)"] += pc.sum(events["label"]).as_py() or 0
        for origin in events["query_origin"].value_counts().to_pylist():
            self._counts[f"query_origin {origin['values']}"] += origin["counts"]
        no_item = pc.invert(pc.is_in(events["item_id"], self._known["items"]))
        self._counts["events whose item has no metadata"] += pc.sum(no_item).as_py() or 0
        no_query = pc.and_(pc.is_valid(events["query_id"]), pc.invert(pc.is_in(events["query_id"], self._known["queries"])))
        self._counts["events whose query has no text"] += pc.sum(no_query).as_py() or 0
        for key, ids in self._ids.items():
            self._ids[key] = pc.unique(pa.chunked_array([ids, pc.unique(events[key]).drop_null()]))
        if events.num_rows:
            self._times += pc.min_max(events["time_ms"]).as_py().values()
        return loaded.quarantine

    def facts(self) -> dict[str, int | str]:
        facts: dict[str, int | str] = {f"distinct {key}": len(ids) for key, ids in self._ids.items()}
        facts["exposures (label 0)"] = self.rows - self._counts["behaviours (label 1)"]
        facts |= dict(sorted(self._counts.items()))
        facts["items without any event"] = pc.sum(pc.invert(pc.is_in(self._known["items"], self._ids["item_id"]))).as_py() or 0
        if self._times:
            first, last = (np.datetime64(t, "ms") for t in (min(self._times), max(self._times)))
            facts["time (UTC)"] = f"{first}Z to {last}Z"
        return facts
